"""Temperature scaling finds the optimum that a search over a grid finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import classification, finalize, temperature_scale, top_k_temperature
from kdjax.losses import TopK, top_k_signal

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


def test_the_top_k_temperature_undoes_a_sharpening():
  # Of K = 3 classes, labels drawn from their probabilities; then twice too sharp.
  logits = RNG.normal(size=(4000, 3)).astype(np.float32)
  labels = (logits + RNG.gumbel(size=logits.shape)).argmax(1).astype(np.int32)
  signal = top_k_signal(jnp.asarray(2 * logits), k=3)
  found, errors = top_k_temperature(signal, labels, grid=(0.5, 1.0, 1.5, 2.0, 2.5))
  assert found == 2.0
  assert errors.argmin() == 3 and errors[3] < 0.03 < errors[1]
  # Rows that do not count may hold anything.
  where = RNG.random(4000) < 0.5
  spoilt = TopK(signal.ids, jnp.where(where[:, None], signal.log_probs, jnp.nan), 3, 1.0)
  kept = top_k_temperature(TopK(signal.ids[where], signal.log_probs[where], 3, 1.0), labels[where])
  again = top_k_temperature(spoilt, np.where(where, labels, -1))
  assert again[0] == kept[0]
  np.testing.assert_array_equal(again[1], kept[1])


def test_one_bin_gives_the_distance_of_accuracy_and_confidence_and_ties_the_plain_signal():
  log_probs = jnp.log(jnp.array([[0.7, 0.3]] * 4))
  signal = TopK(jnp.array([[5, 2]] * 4), log_probs, vocab=9, temperature=1.0)
  _, errors = top_k_temperature(signal, np.array([5, 2, 2, 2]), grid=(1.0,), bins=1)
  np.testing.assert_allclose(errors, [0.7 - 0.25], rtol=1e-6)
  alone = TopK(signal.ids[:, :1], log_probs[:, :1], vocab=9, temperature=1.0)
  found, errors = top_k_temperature(alone, np.array([5, 5, 5, 2]), grid=(0.5, 1.0, 2.0))
  assert found == 1.0
  np.testing.assert_allclose(errors, 0.25)
  for labels, match in ((np.zeros(3, int), "shape"), (np.full(4, -1), "no row counts")):
    with pytest.raises(KdjaxError, match=match):
      top_k_temperature(signal, labels)
  with pytest.raises(KdjaxError, match=r"grid is \[0.0\]"):
    top_k_temperature(signal, np.zeros(4, int), grid=(0.0,))
