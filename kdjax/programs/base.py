"""Programs: one training procedure each, pure, so that the loop need not know what it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

PyTree = Any


class Start(NamedTuple):
  """What a run begins with in place of random arrays; parts of it that are left out are random.

  Attributes:
    params: of the student, all or some.
    model_state: of the student, all or some.
    objective_params: those with the path, shape and dtype of the objective's own are taken.
  """

  params: PyTree
  model_state: PyTree
  objective_params: PyTree = ()


class Apart(NamedTuple):
  """What devices of its own compute of each batch before the program reads it.

  Attributes:
    fill: `fill(frozen, batch) -> dict` of what is put into a training batch, rows first.
    fill_held_out: the same of an evaluation batch.
    frozen: arrays that both read.
    axes: their logical axis names.
  """

  fill: Callable[..., dict]
  fill_held_out: Callable[..., dict]
  frozen: PyTree
  axes: PyTree


class Program(NamedTuple):
  """A training procedure as pure functions on one state pytree.

  The state is a NamedTuple with the fields `step` (int32), `params` (what is exported) and
  `model_state`, and whatever else the procedure carries. Each field is one item of a checkpoint.

  Attributes:
    init: `init(rng, batch, start=None) -> state`; of the batch only shapes are read. `start` is a
      `Start`.
    step: `step(state, frozen, batch) -> (state, metrics)`, metrics as (sum, count) pairs.
    evaluate: `evaluate(state, frozen, batch) -> metrics`, as (sum, count) pairs.
    axes: `axes(abstract state) -> state` with a `PartitionSpec` of logical axis names per leaf.
    frozen: arrays that the step reads and never changes; not checkpointed, not donated.
    frozen_axes: logical axis names of `frozen`.
    prepare: `prepare(state, frozen, batch) -> state`, folded over one pass of the training data
      before the first step; None where nothing is to be prepared.
    prepare_on: what that pass is over: "train" or "validation".
    streams: names of the data streams in a batch; all but "train" are nested under their name.
    apart: what is computed elsewhere first; None for nothing.
  """

  init: Callable[..., Any]
  step: Callable[..., tuple[Any, dict]]
  evaluate: Callable[..., dict]
  axes: Callable[[Any], Any]
  frozen: PyTree = ()
  frozen_axes: PyTree = ()
  prepare: Callable[..., Any] | None = None
  prepare_on: str = "train"
  streams: tuple[str, ...] = ("train",)
  apart: Apart | None = None
