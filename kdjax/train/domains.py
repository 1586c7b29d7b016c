"""Shares of the domains that follow the training: measured on held-out text every so many steps.

What is measured are means over the rows of all hosts, the same on each of them; so are the weights
made of them, and all draw the same mixture. The rule's state is saved with the place in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.data.text import PackedRows, domain_weights
from kdjax.data.text.domain_weights import DomainState, DomainWeights
from kdjax.errors import KdjaxError
from kdjax.programs.base import Program
from kdjax.programs.replicate import replicate
from kdjax.resolve import check_type
from kdjax.train.build import build_program, is_text, made
from kdjax.train.config import Config
from kdjax.train.loop import Data, summarize
from kdjax.train.memory import jit_on
from kdjax.train.mesh import batch_sharding, place
from kdjax.train.streams import Splits, Together, evaluation_passes

FIELD = "config.domain_weights"
# Beside the rule's own arguments: steps between updates, and held-out rows of each domain.
DEFAULTS = {"every": 1000, "rows": 500}

Measured = list[tuple[dict[str, float], dict[str, float]]]


class FollowingStream:
  """A stream whose weights a rule changes; made by `follow_domains`.

  The rows before the first update have the weights that the stream came with.
  """

  def __init__(
    self,
    stream: Any,
    rule: DomainWeights,
    every: int,
    measure: Callable[[Any, Any, bool], Measured],
  ):
    self._stream, self._rule, self._every, self._measure = stream, rule, every, measure
    self._parts = stream.streams if isinstance(stream, Together) else [stream]
    self._states: list[DomainState] | None = None

  def __next__(self):
    return next(self._stream)

  def adapt(self, step: int, state: Any, frozen: Any) -> None:
    """Updates the weights if it is time; see `kdjax.train.loop.Data`."""
    if step % self._every:
      return
    if self._states is None:  # the teacher is asked this once
      self._states = [self._rule.init(*both) for both in self._measure(state, frozen, True)]
      return
    measured = self._measure(state, frozen, False)
    self._states = [
      self._rule.update(own, student)
      for own, (student, _) in zip(self._states, measured, strict=True)
    ]
    for part, own in zip(self._parts, self._states, strict=True):
      part.set_weights(own.weights)

  def get_state(self) -> dict[str, Any]:
    states = self._states and [own._asdict() for own in self._states]
    return {"stream": self._stream.get_state(), "domains": states}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._stream.set_state(state["stream"])
    states = state["domains"]
    self._states = states and [DomainState(**own) for own in states]


def follow_domains(
  config: Config,
  splits: Splits,
  program: Program,
  data: Data,
  mesh: Mesh,
  *,
  seeds: Sequence[int] | None = None,
) -> Data:
  """The data, with weights of their domains as `config.domain_weights` says.

  Args:
    config: of the run.
    splits: from `load_data`; the validation rows are what is measured on.
    program: the run's, replicated where there are seeds.
    data: from `open_data`.
    mesh: of the run.
    seeds: of the replicas, which have weights of their own.

  Raises:
    KdjaxError: data that are no text of several domains with weights, a domain of which nothing is
      held out, a teacher that cannot be asked, or a mistake in the fields.
  """
  spec = dict(config["domain_weights"])
  own = {name: spec.pop(name, default) for name, default in DEFAULTS.items()}
  rule = made(domain_weights, spec, FIELD, also=DEFAULTS)
  if rule is None:
    return data
  for name, value in own.items():
    check_type(value, int, f"{FIELD}.{name}")
    if value < 1:
      raise KdjaxError(f"{FIELD}.{name} = {value} must be at least 1")
  _check(splits)
  domains, held = splits.whole.domains, held_out(splits.validation, own["rows"])
  alone, _ = build_program(
    config | {"objective": {"name": "cross_entropy"}, "program": {"name": "distill"}},
    splits.whole,
    None,
  )
  if seeds is not None:
    alone = replicate(alone, seeds)
  prefixes = [""] if seeds is None else [f"seed{i}/" for i in range(len(seeds))]
  whole = NamedSharding(mesh, PartitionSpec())
  evaluators = {
    teacher_too: jit_on(mesh, each.evaluate, out_shardings=whole)
    for teacher_too, each in ((True, program), (False, alone))
  }
  passes = evaluation_passes(held, config["eval"]["batch_size"], mesh)

  def measure(state: Any, frozen: Any, teacher_too: bool) -> Measured:
    evaluate, sharding = evaluators[teacher_too], batch_sharding(mesh)
    found = summarize(evaluate(state, frozen, place(batch, sharding)) for batch in passes())

    def of(prefix: str) -> dict[str, float]:
      return {name: found[f"{prefix}perplexity/{name}"] for name in domains}

    if teacher_too and f"{prefixes[0]}teacher/perplexity" not in found:
      raise KdjaxError(
        f"{FIELD} compares the student with its teacher on held-out text, and config.teacher cannot"
        " be asked about that; give a teacher that reads the student's tokens (a cached one needs"
        " config.teacher.checkpoint too)"
      )
    return [(of(p), of(f"{p}teacher/") if teacher_too else {}) for p in prefixes]

  stream = FollowingStream(data.stream, rule, own["every"], measure)
  return data._replace(stream=stream, adapt=stream.adapt)


def held_out(rows: PackedRows, count: int) -> PackedRows:
  """Up to `count` rows of each domain, evenly spaced.

  Raises:
    KdjaxError: a domain without any.
  """
  counts = np.bincount(rows.plan.domain, minlength=len(rows.domains))
  if missing := [name for name, n in zip(rows.domains, counts, strict=True) if not n]:
    raise KdjaxError(
      f"{FIELD}: no document of the domain(s) {', '.join(missing)} is held out, so that they cannot"
      " be weighed; use more documents of them, or raise config.data.validation_fraction"
    )
  begin = np.cumsum(counts) - counts
  return rows.take(
    np.concatenate(
      [
        first + np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))
        for first, n in zip(begin, counts, strict=True)
      ]
    )
  )


def _check(splits: Splits) -> None:
  if not is_text(splits.whole) or not isinstance(splits.train, PackedRows):
    raise KdjaxError(
      f"{FIELD} changes the shares of domains of text in one side's tokens; set its name to 'fixed'"
      " for other data"
    )
  if len(splits.whole.domains) < 2:
    raise KdjaxError(f"{FIELD} needs two or more domains in config.data.sources")
  if splits.train.mixture is None:
    raise KdjaxError(f"{FIELD} changes config.data.weights; give those to begin with")
  if splits.validation is None:
    raise KdjaxError(
      f"{FIELD} measures on held-out text; set config.data.validation_fraction, such as 0.1"
    )
