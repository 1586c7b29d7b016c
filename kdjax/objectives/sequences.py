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


class Ends(NamedTuple):
  """Where the groups of one side end.

  Attributes:
    group: [B, T], of each position; -1 for none.
    where: [B, T], the last position of each group.
  """

  group: Int[Array, "batch time"]
  where: Bool[Array, "batch time"]

  def sums(self, values: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    """The sum of values over each group, at every position of it."""

    @jax.vmap
    def rows(group, values):
      slot = jnp.where(group >= 0, group, group.shape[0])
      total = jnp.zeros(group.shape[0], jnp.float32).at[slot].add(values, mode="drop")
      return jnp.where(group >= 0, total[group], 0.0)

    return rows(self.group, values)


class GroupCounterparts(NamedTuple):
  """Where the groups of both sides end, and the teacher's end for each of the student's.

  Attributes:
    student_last: of the student.
    teacher_last: of the teacher.
    places: [B, T], the teacher's position where the student's group ends there too.
    where: [B, T], which of the student's positions end a group of both sides.
  """

  student_last: Ends
  teacher_last: Ends
  places: Int[Array, "batch time"]
  where: Bool[Array, "batch time"]


def group_counterparts(student: Side, teacher: Side, batch: Batch) -> GroupCounterparts:
  """The ends of groups, which `group_ids` and `teacher_group_ids` of the batch number alike.

  Raises:
    KdjaxError: a batch without groups.
  """
  if "group_ids" not in batch or "teacher_group_ids" not in batch:
    raise KdjaxError(
      "the batch has no groups of tokens that both sides share; set config.data.teacher_tokenizer"
    )
  own = _ends(batch["group_ids"], student.where)
  theirs = _ends(batch["teacher_group_ids"], teacher.where)

  @jax.vmap
  def rows(own: Ends, theirs: Ends):
    size = theirs.group.shape[0]
    places = _place_of(theirs.group, theirs.where)
    there = (
      jnp.zeros(size, bool).at[jnp.where(theirs.where, theirs.group, size)].set(True, mode="drop")
    )
    found = own.where & (own.group < size) & there[own.group]
    return jnp.where(found, places[own.group], 0), found

  return GroupCounterparts(own, theirs, *rows(own, theirs))


def _ends(group: Array, counted: Array) -> Ends:
  group = jnp.where(counted, group, -1)
  following = jnp.pad(group[:, 1:], [(0, 0), (0, 1)], constant_values=-1)
  return Ends(group, (group >= 0) & (group != following))


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
