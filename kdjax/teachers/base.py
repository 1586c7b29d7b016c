"""One interface for every teacher: a program does not know which one it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.models.base import Decoding, ModelVars

PyTree = Any


def _no_state(student: ModelVars) -> PyTree:
  return ()


def _same(state: PyTree, student: ModelVars, *, step) -> PyTree:
  return state


class Teacher(NamedTuple):
  """A teacher as pure functions.

  What never changes is `frozen`: it is passed to the compiled step beside the state, and a
  checkpoint records its fingerprint only. What changes with the student is the state that `init`
  makes: it is checkpointed.

  Attributes:
    apply: `apply(frozen, state, batch, *, taps) -> Outputs`; in evaluation mode, no gradients.
    taps: what it can hand over.
    num_classes: size of the last axis of its logits.
    frozen: pytree of arrays, () for a teacher made of the student.
    axes: logical axis names of `frozen` (`PartitionSpec` leaves).
    init: `init(student variables) -> state`.
    update: `update(state, student variables, *, step) -> state`, after each optimiser step.
    state_axes: `state_axes(student axes) -> axes of the state`.
    anywhere: whether it can be asked about any batch; False for one that has stored what it says.
    decode: `decode(frozen) -> Decoding` of one that can write text; else None.
  """

  apply: Callable[..., Any]
  taps: frozenset[str]
  num_classes: int
  frozen: PyTree = ()
  axes: PyTree = ()
  init: Callable[[ModelVars], PyTree] = _no_state
  update: Callable[..., PyTree] = _same
  state_axes: Callable[[ModelVars], PyTree] = _no_state
  anywhere: bool = True
  decode: Callable[[PyTree], Decoding] | None = None
