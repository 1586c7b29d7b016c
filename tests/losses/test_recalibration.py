"""Recalibrated top-k teachers: FIRST's transforms and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from kdjax.losses import TopK, recalibrate_top_k, smooth_top_k, sparse_forward_kl, top_k_signal

from .checks import CLOSE, P, jit, log32, matches, random_logits, reference

STORED = reference("first")
SIGNAL = top_k_signal(jnp.asarray(STORED["teacher"]), k=5)


def test_the_numbers_of_the_official_code():
  np.testing.assert_array_equal(SIGNAL.ids, STORED["ids"])
  legacy = jit(
    lambda c: jax.nn.log_softmax(recalibrate_top_k(SIGNAL, temperature=c, legacy=True).log_probs)
  )
  for temperature in (1.0, 0.2):
    wanted = STORED[f"softmax_t{temperature:g}"]
    np.testing.assert_allclose(legacy(temperature), wanted, **CLOSE)


def test_the_loss_of_the_official_code():
  where = STORED["mask"] == 1
  # Its sum over positions is divided by the number of rows; neutral is a recalibration by 1.
  signal = recalibrate_top_k(SIGNAL, temperature=1.0)
  loss = lambda s: sparse_forward_kl(s, signal, tail="renormalise", where=where).sum() / 3  # noqa: E731
  matches(STORED, {"linear": loss}, STORED["student"])


_tempered = jit(lambda z, c: recalibrate_top_k(top_k_signal(z, k=4), temperature=c).log_probs)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.2, 5))
def test_twin_in_float64_keeps_mass_and_order(seed, temperature):
  teacher = random_logits(seed, (3, 7))[1]
  before = np.asarray(_tempered(teacher, 1.0), np.float64)
  after = np.asarray(_tempered(teacher, temperature), np.float64)
  wanted = np.exp(before) ** (1 / temperature)
  wanted *= np.exp(before).sum(-1, keepdims=True) / wanted.sum(-1, keepdims=True)
  np.testing.assert_allclose(np.exp(after), wanted, rtol=1e-4)
  assert (np.diff(after) <= 0).all()
  plain = top_k_signal(jnp.asarray(teacher), k=4).log_probs
  np.testing.assert_allclose(before, plain, atol=1e-5)


def test_hot_is_uniform_and_cold_is_one_class():
  teacher = np.tile(np.log([0.4, 0.3, 0.1, 0.1, 0.04, 0.03, 0.03]).astype(np.float32), (3, 1))
  for temperature, wanted in ((1e6, [0.225] * 4), (1e-3, [0.9, 0, 0, 0])):
    got = np.exp(_tempered(teacher, temperature))
    np.testing.assert_allclose(got, np.tile(wanted, (3, 1)), atol=1e-5)


def test_unused_slots_stay_unused():
  nothing = -jnp.inf
  log_probs = jnp.log(jnp.array([[0.6, 0.2, 0.0], [0.0, 0.0, 0.0], [0.6, 0.0, 0.0]]))
  signal = TopK(jnp.zeros((3, 3), jnp.int32), log_probs, vocab=9, temperature=1.0)
  for legacy in (False, True):
    got = jit(
      lambda s, legacy=legacy: recalibrate_top_k(s, temperature=2.0, legacy=legacy).log_probs
    )(signal)
    np.testing.assert_array_equal(got == nothing, log_probs == nothing)
    np.testing.assert_allclose(jnp.exp(got).sum(-1), [0.8, 0.0, 0.6], rtol=1e-5)
  smooth = jit(lambda s: jnp.exp(smooth_top_k(s).log_probs))(signal)
  np.testing.assert_allclose(smooth, [[0.5, 0.3, 0], [0, 0, 0], [0.6, 0, 0]], atol=1e-6)


def test_smoothing_moves_exactly_its_amount():
  smooth = jit(lambda s: smooth_top_k(s, amount=0.1).log_probs)
  moved = np.exp(smooth(SIGNAL)) - np.exp(SIGNAL.log_probs)
  np.testing.assert_allclose(moved[..., 0], -0.1, atol=1e-6)
  np.testing.assert_allclose(moved[..., 1:], 0.025, atol=1e-6)
  # A likeliest class with less than the amount gives all.
  flat = TopK(SIGNAL.ids, jnp.full((3, 4, 5), np.log(0.04), jnp.float32), 12, 1.0)
  np.testing.assert_allclose(np.exp(smooth(flat))[0, 0], [0, 0.05, 0.05, 0.05, 0.05], atol=1e-6)


def test_bad_arguments_are_refused():
  with pytest.raises(KdjaxError, match="recalibrate_top_k: temperature is 0"):
    recalibrate_top_k(SIGNAL, temperature=0)
  with pytest.raises(KdjaxError, match="amount is 2"):
    smooth_top_k(SIGNAL, amount=2)
  with pytest.raises(KdjaxError, match="holds one class"):
    smooth_top_k(top_k_signal(log32(P), k=1))
  with pytest.raises(KdjaxError, match="TopK is wanted"):
    recalibrate_top_k(jnp.zeros(3), temperature=1.0)
