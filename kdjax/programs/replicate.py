"""Many seeds of a program as one program: vectorised, in one compiled step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kdjax.programs.base import Program
from kdjax.programs.distill import split_batch


def replicate(program: Program, seeds: Sequence[int]) -> Program:
  """Runs a program once per seed, side by side.

  Every leaf of the state gets a leading axis over seeds. A training batch holds one batch per seed,
  interleaved row by row (see `interleave`), so that it is sharded like any batch; evaluation and
  preparation show every seed the same batch.

  Args:
    program: any.
    seeds: replica i starts as the program alone does from `jax.random.key(seeds[i])`.

  Returns:
    A program whose evaluation names start with "seed<i>/"; training metrics are summed over seeds.
  """
  number = len(seeds)

  def init(rng, batch, start=None):
    one = jax.tree.map(lambda x: x[: x.shape[0] // number], batch)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(lambda key: program.init(key, one, start))(keys)

  def step(state, frozen, batch):
    state, metrics = jax.vmap(program.step, in_axes=(0, None, 0))(
      state, frozen, split_batch(batch, number)
    )
    return state, jax.tree.map(lambda x: x.sum(0), metrics)

  def evaluate(state, frozen, batch):
    metrics = jax.vmap(program.evaluate, in_axes=(0, None, None))(state, frozen, batch)
    return {
      f"seed{i}/{name}": jax.tree.map(lambda x, i=i: x[i], pair)
      for name, pair in metrics.items()
      for i in range(number)
    }

  def axes(state):
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    return jax.tree.map(lambda spec: PartitionSpec(None, *spec), program.axes(one))

  prepare = None
  if program.prepare is not None:
    prepare = jax.vmap(program.prepare, in_axes=(0, None, None))
  return program._replace(init=init, step=step, evaluate=evaluate, axes=axes, prepare=prepare)


def interleave(batches):
  """Rows of several batches in turn: [B, ...] each to [B * number, ...], row-major over seeds."""
  return jax.tree.map(
    lambda *rows: np.stack(rows, axis=1).reshape((-1,) + rows[0].shape[1:]), *batches
  )
