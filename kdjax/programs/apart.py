"""A teacher on devices of its own: what it says of a batch is there before the step reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.outputs import Head, Outputs
from kdjax.programs.base import Apart
from kdjax.programs.views import TOLD, both_views
from kdjax.teachers.base import Teacher

PyTree = Any
# Taps whose arrays have layers first and rows second.
BY_LAYER = ("hidden_states", "queries", "keys", "values", "attention", "decoder_states")
NOT_APART = frozenset({"segment"})  # runs the teacher's weights on what the student hands over


def apart(
  teacher: Teacher, taps: frozenset[str], held_out_taps: frozenset[str], batch: PyTree
) -> tuple[Teacher, Apart]:
  """Splits a teacher into what asks it and what hands on its answers.

  Args:
    teacher: one that neither follows the student nor has stored what it says.
    taps: what a step reads.
    held_out_taps: what an evaluation reads.
    batch: any rows as both sides read them, or their shapes.

  Returns:
    (teacher for the program, what to compute of each batch first). The first gives those taps only,
    of the batch only that the second was computed of; it keeps the head, if that is read.

  Raises:
    KdjaxError: a tap that needs the teacher's weights beside the student.
  """
  if wanted := taps & NOT_APART:
    raise KdjaxError(
      f"config.objective runs layers of the teacher inside the student's step ({sorted(wanted)}),"
      " and config.teacher.mesh puts them on other devices; set its sizes to 0"
    )
  head, head_axes = (), ()
  if "head" in taps | held_out_taps:
    head, head_axes = _head(teacher, batch)

  def ask(asked: frozenset[str]):
    rest = asked - {"head"}

    def fill(frozen, batch):
      two = both_views(batch)
      told = teacher.apply(frozen, (), two, taps=rest) if rest else Outputs()
      ways = 1 if two is batch else 2
      return {TOLD: jax.tree.map(lambda x: _by_row(x, ways), _rows_first(told))}

    return fill

  def apply(frozen, state, batch, *, taps):
    if TOLD not in batch:
      raise KdjaxError(
        "config.teacher.mesh: a teacher on devices of its own is asked about each batch before its"
        " step, and here it is asked about other rows inside; set config.teacher.mesh to 0"
      )
    told = _rows_first(batch[TOLD])
    kept = {name: getattr(told, name) for name in taps - {"head"}}
    return Outputs(**kept, head=jax.lax.stop_gradient(frozen) if "head" in taps else None)

  told_by = teacher._replace(
    apply=apply,
    taps=(taps | held_out_taps) & teacher.taps,
    frozen=head,
    axes=head_axes,
    decode=None,
  )
  return told_by, Apart(ask(taps), ask(held_out_taps), teacher.frozen, teacher.axes)


def _head(teacher: Teacher, batch: PyTree) -> tuple[PyTree, PyTree]:
  """The teacher's last layer and its axes; shapes where the teacher has no more."""
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)

  def read(frozen):
    return teacher.apply(frozen, (), zeros, taps=frozenset({"head"})).head

  abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(teacher.frozen))
  head = jax.eval_shape(read, teacher.frozen) if abstract else jax.jit(read)(teacher.frozen)
  weight = ("vocab", "embed") if head.tied else ("embed", "vocab")
  bias = None if head.bias is None else PartitionSpec("vocab")
  return head, Head(PartitionSpec(*weight), bias, head.softcap, head.tied)


def _rows_first(told: Outputs) -> Outputs:
  """Outputs with the first two axes of what has layers first exchanged; its own inverse."""
  stacked = {
    name: jnp.swapaxes(value, 0, 1)
    for name in BY_LAYER
    if isinstance(value := getattr(told, name), jax.Array)
  }
  return dataclasses.replace(told, **stacked)


def _by_row(x: jax.Array, views: int) -> jax.Array:
  """[views B, ...] to [B, views, ...] where there are two: rows of the batch as it was read."""
  return x if views == 1 else x.reshape((x.shape[0] // views, views, *x.shape[1:]))
