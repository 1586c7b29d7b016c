"""Losses on logits: whole or in chunks, dense or sparse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import hinton_kd, token_level
from kdjax.objectives import total as scalar
from kdjax.outputs import Head, Outputs
from tests.objectives.helpers import applied


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
@pytest.mark.parametrize("time", [None, 7])
def test_chunks_change_neither_value_nor_gradient(chunk_size, time):
  shape = (4, 6) if time is None else (4, time, 6)
  rng = np.random.default_rng(0)
  array = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
  student = {"hidden": array(*shape), "kernel": array(6, 11), "bias": array(11)}
  teacher = Outputs(hidden=array(*shape), head=Head(array(6, 11)))
  teacher_logits = Outputs(logits=teacher.head.logits(teacher.hidden))
  batch = {
    "label": jnp.asarray(rng.integers(-1, 11, shape[:-1])),
    "mask": jnp.asarray(rng.random(shape[:-1]) < 0.8),
  }

  def chunked(weights):
    own = Outputs(hidden=weights["hidden"], head=Head(weights["kernel"], weights["bias"]))
    return scalar(applied(hinton_kd(chunk_size=chunk_size), own, teacher, batch)[0])

  def plain(weights):
    logits = weights["hidden"] @ weights["kernel"]
    logits = logits + jnp.broadcast_to(weights["bias"], logits.shape)
    return scalar(applied(hinton_kd(), Outputs(logits=logits), teacher_logits, batch)[0])

  value, grad = jax.jit(jax.value_and_grad(chunked))(student)
  wanted, wanted_grad = jax.jit(jax.value_and_grad(plain))(student)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), grad, wanted_grad
  )


def test_a_chunk_reads_a_sparse_signal_position_by_position():
  hidden = jax.random.normal(jax.random.key(0), (3, 10, 4))
  kernel = jax.random.normal(jax.random.key(1), (4, 9))
  teacher = jax.random.normal(jax.random.key(2), (3, 10, 9))
  signal = losses.top_k_signal(teacher, k=3)
  loss = functools.partial(losses.sparse_forward_kl, tail="bucket")
  student = Outputs(hidden=hidden, head=Head(kernel))
  result, _ = applied(token_level(loss, chunk_size=4), student, Outputs(signal=signal), {})
  np.testing.assert_allclose(
    result.loss[""].values, loss(hidden @ kernel, signal).mean(), rtol=2e-5, atol=1e-6
  )
  assert result.loss[""].where == 30
