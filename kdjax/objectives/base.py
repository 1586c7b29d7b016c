"""Objectives: to losses what `optax.GradientTransformation` is to gradients.

An objective is a tuple of pure functions. `apply` turns the outputs of student and teacher into
per-example terms; the program masks, averages and differentiates them. Anything an objective
learns lives in its `params` (trained with the student), anything it carries in its `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.outputs import Outputs

PyTree = Any
Batch = Mapping[str, Any]
Pair = tuple[Array, Array]  # (sum, count)


class Taps(NamedTuple):
  """The `Outputs` fields that an objective reads from each side."""

  student: frozenset[str] = frozenset()
  teacher: frozenset[str] = frozenset()


class ObjectiveVars(NamedTuple):
  params: PyTree = ()  # trained with the student
  state: PyTree = ()  # carried and checkpointed


class Term(NamedTuple):
  """One loss before reduction: the mean of `values` over `where`, times `weight`.

  Terms carry their own `where`, since labels may be missing where the teacher's signal is not. A
  float `where` weighs each value: the mean is that of `where * values` over the sum of `where`.
  """

  values: Float[Array, "*batch"]
  where: Bool[Array, "*batch"] | Float[Array, "*batch"]
  weight: Float[Array, ""] | float = 1.0


class ObjectiveResult(NamedTuple):
  """What `apply` returns.

  Attributes:
    loss: name to term. The program minimises the weighted sum of the terms' means.
    metrics: name to (sum, count), for the log only.
    stats: what `update` reads.
  """

  loss: dict[str, Term]
  metrics: dict[str, Pair] = {}  # noqa: RUF012 (never changed in place)
  stats: PyTree = ()


def _no_vars(rng, student, teacher, batch) -> ObjectiveVars:
  return ObjectiveVars()


def _same_state(state, stats, *, step):
  return state


class Objective(NamedTuple):
  """A distillation objective.

  Attributes:
    apply: `apply(vars, student, teacher, batch, *, step, rng) -> ObjectiveResult`. `student` and
      `teacher` are `Outputs` with the fields named in `taps`; no gradient reaches the teacher's.
      `rng` may be None for an objective that draws nothing.
    taps: what `apply` reads.
    init: `init(rng, student, teacher, batch) -> ObjectiveVars`; reads shapes and dtypes only.
    update: `update(state, stats, *, step) -> state`, once per optimiser step. Every leaf of `stats`
      has a leading axis over the micro-batches of that step, so that an update may sum or
      concatenate them and is the same for any accumulation.
    prepare: `prepare(vars, teacher, batch) -> vars`, folded over one pass of the training data
      (labels as given, no augmentation, teacher in evaluation mode) before the first step; None
      where no such pass is needed.
    prepare_on: "train", or "validation" for a pass over the rows that are held out.
    across_vocabularies: whether the two sides' logits may be over different vocabularies.
  """

  apply: Callable[..., ObjectiveResult]
  taps: Taps
  init: Callable[..., ObjectiveVars] = _no_vars
  update: Callable[..., PyTree] = _same_state
  prepare: Callable[..., ObjectiveVars] | None = None
  prepare_on: str = "train"
  across_vocabularies: bool = False

  @property
  def pairs_classes(self) -> bool:
    """Whether class i of the one side is compared with class i of the other."""
    both = self.taps.student & self.taps.teacher & {"logits", "head"}
    return bool(both) and not self.across_vocabularies


def valid(batch: Batch, values: Array) -> Bool[Array, "*batch"]:
  """The batch's `mask` (True = counted) in the shape of `values`; all True without one."""
  mask = batch.get("mask")
  if mask is None:
    return jnp.ones(values.shape, bool)
  return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)


def masked_sum(values: Array, where: Array) -> Pair:
  """(sum, count) of `values` over `where`, in float32; the one reduction of the library.

  A float `where` weighs each value; the count is then the sum of the weights.
  """
  # Selecting before summing keeps inf and NaN under the mask out of value and gradient.
  kept = jnp.where(where.astype(bool), values.astype(jnp.float32), jnp.float32(0))
  return (kept * where.astype(jnp.float32)).sum(), where.sum(dtype=jnp.float32)


def counts(result: ObjectiveResult) -> dict[str, Array]:
  """Number of valid elements of each term."""
  return {name: masked_sum(term.values, term.where)[1] for name, term in result.loss.items()}


def total(result: ObjectiveResult, count: Mapping[str, Array] | None = None) -> Float[Array, ""]:
  """The scalar to differentiate: the weighted sum of the terms' means.

  Args:
    result: what an objective returned.
    count: what each term's sum is divided by; its own number of valid elements where None. Under
      accumulation it is that of the whole batch, so that the totals of the micro-batches add up.

  Returns:
    float32; a term without valid elements counts as 0.
  """
  count = counts(result) if count is None else count
  parts = [
    term.weight
    * masked_sum(term.values, term.where)[0]
    / jnp.where(count[name] > 0, count[name], 1)
    for name, term in result.loss.items()
  ]
  return sum(parts, jnp.float32(0))


def metrics(result: ObjectiveResult) -> dict[str, Pair]:
  """Every term as `loss/<name>` (a lone term as `loss/objective`), the objective's own beside."""
  terms = {
    f"loss/{name or 'objective'}": masked_sum(t.values, t.where) for name, t in result.loss.items()
  }
  return terms | dict(result.metrics)


def mean(pairs: Pair) -> Array:
  """Sum over count of stacked pairs ([micro-batches] leading), 0 where nothing was counted."""
  num, den = pairs
  num, den = num.sum(0), den.sum(0)
  return num / jnp.where(den > 0, den, 1)


def stop_teacher(teacher: Outputs) -> Outputs:
  """The teacher's outputs with no gradient path into them; `segment` stays differentiable in its
  argument, its weights are stopped inside."""
  return jax.lax.stop_gradient(teacher)
