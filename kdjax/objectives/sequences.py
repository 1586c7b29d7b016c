"""Which position of the teacher belongs to which of the student, where each has its own tokens.

Rows hold sequences one after another, numbered 1, 2, ... on both sides (`segment_ids`, 0 at
padding). A batch without a teacher's own keys has the same tokens for both.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.objectives.base import Batch, valid
from kdjax.outputs import Outputs


class Side(NamedTuple):
  """One side's positions.

  Attributes:
    label: [B, T].
    where: which of them count: they have a label to be learnt.
    segments: [B, T].
  """

  label: Int[Array, "batch time"]
  where: Bool[Array, "batch time"]
  segments: Int[Array, "batch time"]


def sides(batch: Batch) -> tuple[Side, Side]:
  """(student's, teacher's) of a batch of text.

  Raises:
    KdjaxError: labels without a time axis.
  """
  student = _side(batch)
  own = {k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")}
  return student, _side(own) if own else student


def counterparts(student: Side, teacher: Side) -> tuple[Int[Array, "batch time"], Array]:
  """The teacher's position for each of the student's: the n-th of a sequence for the n-th.

  Returns:
    (positions int [B, T], where there is one: bool [B, T]); no sequence goes on after the end of
    the shorter side.
  """

  @jax.vmap
  def rows(student: Side, teacher: Side):
    size = student.segments.shape[0] + 1
    own, theirs = (_counts(side.where, side.segments, size) for side in (student, teacher))
    number = jnp.cumsum(student.where) - 1 - (jnp.cumsum(own) - own)[student.segments]
    places = _place_of(jnp.cumsum(teacher.where) - 1, teacher.where)
    start = (jnp.cumsum(theirs) - theirs)[student.segments]
    found = student.where & (number < theirs[student.segments])
    wanted = jnp.where(found, start + number, 0)
    return places[wanted], found

  return rows(student, teacher)


def mean_weights(
  where: Bool[Array, "batch time"], segments: Int[Array, "batch time"]
) -> Float[Array, "batch time"]:
  """Weights that count each sequence once, however many of its positions do."""

  @jax.vmap
  def rows(where, segments):
    count = _counts(where, segments, segments.shape[0] + 1)[segments]
    return jnp.where(where, 1.0 / jnp.maximum(count, 1).astype(jnp.float32), 0.0)

  return rows(where, segments)


def at_positions(outputs: Outputs, positions: Int[Array, "batch time"], who: str) -> Outputs:
  """The outputs `logits` and `hidden` at given positions of the time axis.

  Raises:
    KdjaxError: a cached signal, which has no positions of its own.
  """
  if outputs.signal is not None:
    raise KdjaxError(f"{who} hands over a stored signal; across tokenizers it must be asked live")
  picked = {
    name: jnp.take_along_axis(value, positions[..., None], axis=1)
    for name in ("logits", "hidden")
    if (value := getattr(outputs, name)) is not None
  }
  return dataclasses.replace(outputs, **picked)


def _side(batch: Batch) -> Side:
  label = batch["label"]
  if label.ndim != 2:
    raise KdjaxError(
      f"labels have shape {label.shape}; an objective across tokenizers needs text, [B, T]"
    )
  segments = batch.get("segment_ids", jnp.ones(label.shape, jnp.int32))
  return Side(label, valid(batch, label) & (label >= 0), segments)


def _counts(where: Array, segments: Array, size: int) -> Array:
  return jnp.zeros(size, jnp.int32).at[segments].add(where.astype(jnp.int32))


def _place_of(number: Array, where: Array) -> Array:
  """The position of each number, of those that count."""
  size = number.shape[0]
  slot = jnp.where(where, number, size)  # past the end: dropped
  return jnp.zeros(size, jnp.int32).at[slot].set(jnp.arange(size), mode="drop")
