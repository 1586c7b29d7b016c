"""A step whose values are not finite counts for nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.programs.base import Program

PyTree = Any


def skip_nonfinite(program: Program) -> Program:
  """The program, but that a step with a value that is not finite leaves all but `step` as it was.

  What is looked at are the step's metrics and the new parameters: an infinite gradient behind a
  finite loss shows in the latter. Both states are held until that is known, so that a step takes
  the memory of another state.

  Args:
    program: any.

  Returns:
    The program. Its metrics have `skipped`, 1 for such a step; the step's other metrics count
    nothing then.
  """

  def step(state: Any, frozen: PyTree, batch: PyTree) -> tuple[Any, dict]:
    new, pairs = program.step(state, frozen, batch)
    fine = _finite((new.params, [num for num, _ in pairs.values()]))
    kept = jax.tree.map(lambda after, before: jnp.where(fine, after, before), new, state)
    counted = jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), dict(pairs))
    skipped = {"skipped": (1.0 - fine.astype(jnp.float32), jnp.float32(1))}
    return kept._replace(step=new.step), counted | skipped

  return program._replace(step=step)


def _finite(tree: PyTree) -> jax.Array:
  leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
