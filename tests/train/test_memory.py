"""What the compiler is asked for is what it does."""

import jax
import jax.numpy as jnp

from kdjax.train.memory import compiler_options
from kdjax.train.mesh import make_mesh


def test_the_order_of_operations_needs_less_memory():
  def loss(weights, x):  # products that could all run at once
    return sum((jnp.sin(x @ w) @ w.T).sum() for w in weights)

  weights = jnp.ones((8, 64, 64))
  lowered = jax.jit(jax.grad(loss)).lower(weights, jnp.ones((256, 64)))
  options = compiler_options(make_mesh(data=1))
  sizes = [
    lowered.compile(compiler_options=own).memory_analysis().temp_size_in_bytes
    for own in ({}, options)
  ]
  assert sizes[1] < 0.9 * sizes[0], sizes
