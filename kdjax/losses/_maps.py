"""What the losses on features share: checks, and relations within a batch.

The first axis is the example. A relation is a matrix over pairs of examples; its loss is given to
the example of each row, so that the mean over the examples that count is the published number.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common


class Features(NamedTuple):
  """Both sides in float32, rows that do not count set to 0, the teacher without gradient."""

  student: Float[Array, "batch ..."]
  teacher: Float[Array, "batch ..."]
  where: Bool[Array, "batch"]


def align(
  loss: str, student, teacher, where, *, same_shape: bool = False, maps: bool = False
) -> Features:
  """Checks the arguments that every loss on features has and brings them into one form."""
  student, teacher = jnp.asarray(student), jax.lax.stop_gradient(jnp.asarray(teacher))
  shapes = f"student_features has shape {student.shape} and teacher_features {teacher.shape}"
  if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
    raise KdjaxError(f"{loss}: {shapes}; both need axes behind one batch axis of the same size")
  if maps and (student.ndim, teacher.ndim) != (4, 4):
    raise KdjaxError(f"{loss}: {shapes}; maps [batch, height, width, channel] are wanted")
  if same_shape and student.shape != teacher.shape:
    raise KdjaxError(f"{loss}: {shapes}; they must be equal. Project or pool one of them first")
  batch = student.shape[:1]
  where = _common.check_where(loss, where, batch)
  if where is None:
    where = jnp.ones(batch, bool)
  return Features(_cleaned(student, where), _cleaned(teacher, where), where)


def _cleaned(x: Array, where: Array) -> Array:
  counted = where.reshape(where.shape + (1,) * (x.ndim - 1))
  return jnp.where(jnp.broadcast_to(counted, x.shape), x.astype(jnp.float32), 0.0)


def example_mean(x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
  """The mean over everything but the examples."""
  return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def rows(x: Float[Array, "batch ..."]) -> Float[Array, "batch width"]:
  """One vector for each example."""
  return x.reshape(x.shape[0], -1)


def unit(x: Array, axis: int = -1) -> Array:
  """x / max(|x|, 1e-12), with gradient 0 where x is 0."""
  length = jnp.expand_dims(_common.norm(x, axis), axis)
  return x / jnp.maximum(length, 1e-12)


def pairs(where: Bool[Array, "batch"]) -> Bool[Array, "batch batch"]:
  """Which pairs of examples count."""
  return where[:, None] & where[None, :]


def number(where: Bool[Array, "batch"]) -> Float[Array, ""]:
  """How many examples count, at least 1."""
  return jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)


def mean_over_pairs(
  values: Float[Array, "batch batch"], where: Bool[Array, "batch"]
) -> Float[Array, "batch"]:
  """The mean of each row over the examples that count; 0 for a row that does not."""
  return jnp.sum(jnp.where(pairs(where), values, 0.0), axis=-1) / number(where)
