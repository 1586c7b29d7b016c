"""The four teacher signals as pytrees, and how sparse ones are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError

from .checks import log_softmax64, random_logits


def test_signals_are_pytrees_that_keep_what_is_static():
  logits = jnp.asarray(random_logits(0, (2, 3, 5))[0])
  signal = losses.top_k_signal(logits, k=2, temperature=2.0)
  leaves, structure = jax.tree.flatten(signal)
  assert len(leaves) == 2
  again = jax.jit(lambda s: s)(jax.tree.unflatten(structure, leaves))
  assert (again.vocab, again.temperature, again.dtype) == (5, 2.0, jnp.float32)
  assert len(jax.tree.leaves(losses.HiddenHead(logits, jnp.eye(5)))) == 2
  assert losses.Dense(logits.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  # Raw logits carry no temperature; a sparse support is told.
  assert losses.Dense.temperature is None and losses.HiddenHead.temperature is None
  assert losses.TopK.support != losses.Sampled.support


def test_top_k_keeps_the_likeliest_with_log_probs_over_every_class():
  logits = random_logits(1, (4, 6))[0]
  signal = losses.top_k_signal(jnp.asarray(logits), k=3, temperature=2.0)
  log_probs = log_softmax64(logits, 2.0)
  order = np.argsort(-log_probs, axis=-1)[:, :3]
  np.testing.assert_array_equal(signal.ids, order)
  np.testing.assert_allclose(
    signal.log_probs, np.take_along_axis(log_probs, order, -1), rtol=1e-5, atol=1e-6
  )


def test_hidden_head_rebuilds_the_logits_in_float32():
  rng = np.random.default_rng(2)
  hidden, kernel, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
  for dtypes in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32)):
    h, k = jnp.asarray(hidden, dtypes[0]), jnp.asarray(kernel, dtypes[1])
    signal = losses.HiddenHead(h, k, jnp.asarray(bias, jnp.bfloat16))
    wanted = np.asarray(h, np.float64) @ np.asarray(k, np.float64)
    wanted += np.asarray(signal.bias, np.float64)
    assert signal.logits.dtype == jnp.float32
    np.testing.assert_allclose(signal.logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_sampled_expectations_are_those_of_the_teacher(power):
  logits = jnp.asarray(np.log([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.1, 0.7]]), jnp.float32)
  count = 4000
  signal = losses.sampled_signal(
    jax.random.key(3), logits, num_samples=count, temperature=0.5, proposal_power=power
  )
  assert signal.ids.shape == signal.weights.shape == (2, count)
  np.testing.assert_allclose(jnp.sum(signal.weights, -1), 1.0, rtol=1e-4)
  if power == 1.0:
    np.testing.assert_allclose(signal.weights, 1 / count, rtol=1e-5)
  else:
    assert np.ptp(signal.weights) > 1e-4
  one_hot = jax.nn.one_hot(signal.ids, 4)
  estimate = jnp.sum(jnp.expand_dims(signal.weights, -1) * one_hot, axis=1)
  # Softening at 0.5 squares the probabilities. Six standard errors are below 0.05.
  p = np.exp(log_softmax64(logits, 0.5))
  np.testing.assert_allclose(estimate, p, atol=0.05)


def test_excluded_classes_are_never_drawn():
  logits = jnp.array([0.0, -jnp.inf, 1.0, -jnp.inf])
  signal = losses.sampled_signal(jax.random.key(4), logits, num_samples=64, proposal_power=0.3)
  assert set(np.unique(signal.ids)) == {0, 2}
  assert np.isfinite(signal.weights).all()


def test_bad_requests_are_refused():
  logits = jnp.zeros((2, 4))
  with pytest.raises(KdjaxError, match=r"k is 5; it must lie in 1\.\.4"):
    losses.top_k_signal(logits, k=5)
  with pytest.raises(KdjaxError, match="temperature is 0"):
    losses.top_k_signal(logits, k=2, temperature=0)
  with pytest.raises(KdjaxError, match="num_samples is 0"):
    losses.sampled_signal(jax.random.key(0), logits, num_samples=0)
  with pytest.raises(KdjaxError, match="proposal_power is 0"):
    losses.sampled_signal(jax.random.key(0), logits, num_samples=1, proposal_power=0)
