"""Temperature scaling finds the optimum that a search over a grid finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.evaluation import classification, finalize, temperature_scale

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 300).astype(np.int32)
LOGITS = (RNG.normal(size=(300, 4)) + 2 * np.eye(4)[LABELS]).astype(np.float32)


def nll(temperature, logits=LOGITS):
  z = logits.astype(np.float64) / temperature
  z = z - z.max(1, keepdims=True)
  return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), LABELS])


def test_no_grid_point_is_better():
  found = float(temperature_scale(LOGITS, LABELS))
  grid = np.exp(np.linspace(-3, 3, 2001))
  best = grid[np.argmin([nll(t) for t in grid])]
  assert found == pytest.approx(best, rel=0.004)
  assert nll(found) <= nll(best) + 1e-9


def test_scaled_logits_need_the_scale_back():
  plain = float(temperature_scale(LOGITS, LABELS))
  assert float(temperature_scale(5 * LOGITS, LABELS)) == pytest.approx(5 * plain, rel=1e-4)


def test_overconfidence_is_mended_and_no_decision_changes():
  # Labels drawn from the softmax of the logits, which are then made four times too sharp. So many
  # rows that the error of a calibrated classifier is small.
  logits = RNG.normal(size=(5000, 4)).astype(np.float32)
  labels = jnp.asarray((logits + RNG.gumbel(size=logits.shape)).argmax(1).astype(np.int32))
  sharp = jnp.asarray(4 * logits)
  mended = sharp / temperature_scale(sharp, labels)
  before, after = (finalize(classification(z, labels)) for z in (sharp, mended))
  assert after["accuracy"] == before["accuracy"]
  assert after["nll"] < before["nll"] - 0.1
  assert before["ece"] > 0.3
  assert after["ece"] < 0.04


def test_rows_that_do_not_count():
  where = RNG.random(300) < 0.7
  spoilt = np.where(where[:, None], LOGITS, np.nan)
  want = temperature_scale(LOGITS[where], LABELS[where])
  got = jax.jit(temperature_scale)(spoilt, LABELS, where)
  assert float(got) == pytest.approx(float(want), rel=1e-4)
  unknown = temperature_scale(LOGITS, np.where(where, LABELS, -1))
  assert float(unknown) == pytest.approx(float(want), rel=1e-4)


def test_without_an_optimum_inside_the_range_the_end_is_returned():
  logits = np.eye(4, dtype=np.float32)[LABELS]
  assert float(temperature_scale(logits, LABELS)) == pytest.approx(np.exp(-3), rel=1e-4)
  wrong = np.eye(4, dtype=np.float32)[(LABELS + 1) % 4]
  assert float(temperature_scale(wrong, LABELS)) == pytest.approx(np.exp(3), rel=1e-4)
