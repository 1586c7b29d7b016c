"""The filters, by hand and against sorting; draws have the frequencies that the filters say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from kdjax.generation.sampling import (
  GREEDY,
  Sampling,
  check_sampling,
  draw,
  filtered,
  keep_min_p,
  keep_top_k,
  keep_top_p,
  log_prob_of,
)

# Probabilities 0.4, 0.3, 0.2, 0.1, in another order.
PROBS = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
LOGITS = jnp.log(jnp.asarray(PROBS)) + 7.0


def kept(logits):
  return np.flatnonzero(np.isfinite(logits)).tolist()


def test_each_filter_by_hand():
  assert kept(keep_top_k(LOGITS, 1)) == [1]
  assert kept(keep_top_k(LOGITS, 3)) == [1, 2, 3]
  assert kept(keep_top_k(LOGITS, 9)) == [0, 1, 2, 3]
  assert kept(keep_top_p(LOGITS, 0.39)) == [1]
  assert kept(keep_top_p(LOGITS, 0.41)) == [1, 3]  # 0.4 < 0.41 <= 0.4 + 0.3
  assert kept(keep_top_p(LOGITS, 0.95)) == [0, 1, 2, 3]  # 0.9 < 0.95
  assert kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3]
  assert kept(keep_min_p(LOGITS, 0.51)) == [1, 3]  # bound 0.4 * 0.51 = 0.204
  assert kept(keep_min_p(LOGITS, 0.0)) == [0, 1, 2, 3]
  assert kept(keep_min_p(LOGITS, 1.0)) == [1]
  np.testing.assert_array_equal(keep_top_k(LOGITS, 2)[jnp.array([1, 3])], LOGITS[np.array([1, 3])])


def test_tokens_as_likely_as_the_last_one_stay():
  even = jnp.array([1.0, 1.0, 0.0, 1.0])
  assert kept(keep_top_k(even, 2)) == [0, 1, 3]
  assert kept(keep_top_p(even, 0.1)) == [0, 1, 3]


def test_the_options_work_in_the_order_told():
  # At temperature 0.5 the probabilities are as 0.01, 0.16, 0.04, 0.09; top_k leaves 16 and 9 of 25,
  # of which 0.64 is the first: top_p = 0.63 keeps it alone. Without top_k it would need 0.16 / 0.3,
  # which is less than 0.63.
  assert kept(filtered(LOGITS, Sampling(0.5, top_k=2, top_p=0.63))) == [1]
  assert kept(filtered(LOGITS, Sampling(0.5, top_p=0.63))) == [1, 3]
  # min_p reads the tempered logits: 0.09 / 0.16 = 0.5625, but 0.3 / 0.4 = 0.75 untempered.
  assert kept(filtered(LOGITS, Sampling(0.5, min_p=0.6))) == [1]
  assert kept(filtered(LOGITS, Sampling(1.0, min_p=0.6))) == [1, 3]
  np.testing.assert_allclose(
    jax.nn.softmax(filtered(LOGITS, Sampling(0.5, top_k=2))), [0, 0.64, 0, 0.36], atol=1e-6
  )


top_k, top_p = jax.jit(keep_top_k), jax.jit(keep_top_p)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
  st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8),
  st.integers(1, 10),
  st.floats(0.01, 0.99),
)
def test_bisection_finds_what_sorting_finds(values, k, p):
  logits = np.asarray(values, np.float32) + np.float32(0)  # no -0
  bound = np.sort(logits)[::-1][min(k, len(logits)) - 1]
  np.testing.assert_array_equal(top_k(logits, k), np.where(logits >= bound, logits, -np.inf))
  exact = np.exp(logits.astype(np.float64) - logits.max())
  exact /= exact.sum()
  order = np.argsort(-logits, kind="stable")
  mass = np.cumsum(exact[order])
  if np.abs(mass - p).min() > 1e-5:  # else rounding decides
    bound = logits[order[np.argmax(mass >= p)]] if (mass >= p).any() else logits.min()
    np.testing.assert_array_equal(top_p(logits, p), np.where(logits >= bound, logits, -np.inf))


def test_what_is_cut_stays_cut_and_extremes_are_finite():
  logits = jnp.array([-jnp.inf, 1e4, -1e4, 3.0, -jnp.inf])
  out = filtered(logits, Sampling(0.7, top_k=3, top_p=1.0, min_p=0.0))
  assert kept(out) == [1, 2, 3]
  assert not np.isnan(jax.nn.softmax(out)).any()
  assert filtered(jnp.zeros((2, 1)), Sampling(2.0, 5, 0.5, 0.5)).tolist() == [[0.0], [0.0]]
  assert filtered(logits.astype(jnp.bfloat16), Sampling(1.0, top_k=1)).dtype == jnp.float32


def test_under_jit_and_vmap_the_options_may_be_traced():
  logits = jax.random.normal(jax.random.key(0), (3, 5, 17))
  sampling = Sampling(0.8, 6, 0.7, 0.05)
  wanted = filtered(logits, sampling)
  compiled = jax.jit(filtered)
  np.testing.assert_allclose(compiled(logits, sampling), wanted, rtol=1e-6)
  np.testing.assert_allclose(
    jax.vmap(compiled, in_axes=(0, None))(logits, sampling), wanted, rtol=1e-6
  )
  compiled(logits, Sampling(0.3, 2, 0.9, 0.1))
  assert compiled._cache_size() == 1
  for row in range(3):
    np.testing.assert_allclose(filtered(logits[row], sampling), wanted[row], rtol=1e-6)


def test_draws_follow_the_filtered_distribution_and_say_their_log_probability():
  sampling = Sampling(0.5, top_k=3)  # 0.16, 0.04, 0.09 of 0.29
  keys = jax.random.split(jax.random.key(0), 4000)
  tokens, log_probs = draw(keys, jnp.broadcast_to(LOGITS, (4000, 4)), sampling)
  wanted = np.array([0.0, 0.16, 0.04, 0.09]) / 0.29
  np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, wanted, atol=0.025)
  np.testing.assert_allclose(np.exp(log_probs), wanted[np.asarray(tokens)], rtol=1e-5)


def test_temperature_zero_is_greedy_also_when_traced():
  logits = jax.random.normal(jax.random.key(0), (6, 9))
  keys = jax.random.split(jax.random.key(1), 6)
  compiled = jax.jit(draw)
  for sampling in (GREEDY, Sampling(jnp.float32(0.0))):
    tokens, log_probs = compiled(keys, logits, sampling)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    assert not log_probs.any()


def test_log_prob_of_by_hand():
  np.testing.assert_allclose(log_prob_of(LOGITS[None], jnp.array([2])), np.log([0.2]), rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "told"),
  [
    ({"temperature": -0.1}, "temperature = -0.1; wanted a number >= 0"),
    ({"temperature": float("nan")}, "temperature = nan"),
    ({"temperature": None}, "temperature = None"),
    ({"top_k": 0}, "top_k = 0; wanted an integer >= 1"),
    ({"top_k": 2.5}, "top_k = 2.5"),
    ({"top_p": 0.0}, r"top_p = 0.0; wanted a number in \(0, 1\]"),
    ({"top_p": 1.01}, "top_p = 1.01"),
    ({"min_p": -0.5}, r"min_p = -0.5; wanted a number in \[0, 1\]"),
  ],
)
def test_options_out_of_range_are_told(options, told):
  with pytest.raises(KdjaxError, match=told):
    check_sampling(Sampling(**options))
