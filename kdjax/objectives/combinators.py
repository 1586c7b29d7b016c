"""Combinators: objectives made from objectives and from plain losses."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax

from kdjax.errors import KdjaxError
from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Taps,
)
from kdjax.outputs import Outputs

PER_LAYER = ("hidden_states", "queries", "keys", "values", "attention")
PER_STAGE = ("features", "preactivations")


def combine(terms: Mapping[str, tuple[float, Objective]]) -> Objective:
  """The weighted sum of objectives.

  Args:
    terms: name to (weight, objective). Names appear in the metrics: `loss/kd`, or `loss/kd/feature`
      for a term of a combined objective.

  Returns:
    An objective with each part's params, state and stats under the part's name.
  """
  parts = {name: objective for name, (_, objective) in terms.items()}
  weights = {name: weight for name, (weight, _) in terms.items()}

  def init(rng, student, teacher, batch):
    return _gather(
      {n: part.init(_key(rng, n), student, teacher, batch) for n, part in parts.items()}
    )

  def apply(variables, student, teacher, batch, *, step, rng):
    loss, metrics, stats = {}, {}, {}
    for name, part in parts.items():
      own = _part(variables, name)
      out = part.apply(own, student, teacher, batch, step=step, rng=_key(rng, name))
      for key, term in out.loss.items():
        loss[_join(name, key)] = term._replace(weight=weights[name] * term.weight)
      metrics |= {f"{name}/{key}": pair for key, pair in out.metrics.items()}
      stats[name] = out.stats
    return ObjectiveResult(loss, metrics, stats)

  def update(state, stats, *, step):
    return {n: part.update(state[n], stats[n], step=step) for n, part in parts.items()}

  def prepare(variables, teacher, batch):
    every = {}
    for name, part in parts.items():
      own = _part(variables, name)
      every[name] = own if part.prepare is None else part.prepare(own, teacher, batch)
    return _gather(every)

  passes = {part.prepare_on for part in parts.values() if part.prepare}
  if len(passes) > 1:
    raise KdjaxError(
      f"combine: its terms are prepared on the rows {sorted(passes)}; one pass is made, over one of"
      " them. Give what would be prepared as a number (first: temperature)"
    )
  return Objective(
    apply=apply,
    taps=_union(part.taps for part in parts.values()),
    init=init,
    update=update,
    prepare=prepare if passes else None,
    prepare_on=passes.pop() if passes else "train",
    across_vocabularies=not any(part.pairs_classes for part in parts.values()),
  )


def scheduled(objective: Objective, schedule: Callable[[jax.Array], jax.Array]) -> Objective:
  """The objective with every term's weight multiplied by `schedule(step)` (any optax schedule)."""

  def apply(variables, student, teacher, batch, *, step, rng):
    out = objective.apply(variables, student, teacher, batch, step=step, rng=rng)
    factor = schedule(step)
    loss = {key: term._replace(weight=factor * term.weight) for key, term in out.loss.items()}
    return out._replace(loss=loss)

  return objective._replace(apply=apply)


def on_layers(
  objective: Objective,
  pairs: Sequence[tuple[int | str, int | str]],
  *,
  weights: Sequence[float] | None = None,
) -> Objective:
  """The weighted sum of an objective over pairs of layers.

  Inside, the per-layer fields of `Outputs` hold one layer, without their layer axis, and `features`
  and `preactivations` hold one map. Every pair has its own params and state.

  Args:
    objective: reads one layer of each side.
    pairs: (student layer, teacher layer); integers index layers or, in the order of their names,
      stages (negative from the last), strings name stages.
    weights: one for each pair; None takes the mean.

  Returns:
    The objective.

  Raises:
    KdjaxError: for no pairs, a pair given twice, or weights that are not one for each; and, when
      shapes are first known, for a layer that does not exist.
  """
  if not pairs:
    raise KdjaxError("on_layers: pairs is empty; give at least one (student layer, teacher layer)")
  weights = (1.0 / len(pairs),) * len(pairs) if weights is None else weights
  names = [f"s{s}_t{t}" for s, t in pairs]
  if len(weights) != len(pairs) or len(set(names)) < len(names):
    raise KdjaxError(
      f"on_layers: pairs {[*map(tuple, pairs)]} and weights {[*weights]}: one weight for each pair"
      " and each pair once is wanted"
    )
  return combine(
    {
      name: (weight, _on_pair(objective, *pair))
      for name, weight, pair in zip(names, weights, pairs, strict=True)
    }
  )


def _on_pair(objective: Objective, student_layer: int | str, teacher_layer: int | str) -> Objective:
  def init(rng, student, teacher, batch):
    picked = jax.eval_shape(
      lambda s, t: (
        pick_layer(s, student_layer, "student"),
        pick_layer(t, teacher_layer, "teacher"),
      ),
      student,
      teacher,
    )
    return objective.init(rng, *picked, batch)

  def apply(variables, student, teacher, batch, *, step, rng):
    student = pick_layer(student, student_layer, "student")
    teacher = pick_layer(teacher, teacher_layer, "teacher")
    return objective.apply(variables, student, teacher, batch, step=step, rng=rng)

  def prepare(variables, teacher, batch):
    return objective.prepare(variables, pick_layer(teacher, teacher_layer, "teacher"), batch)

  return objective._replace(
    init=init, apply=apply, prepare=None if objective.prepare is None else prepare
  )


def pick_layer(outputs: Outputs, layer: int | str, side: str) -> Outputs:
  """The outputs with every per-layer field reduced to one layer.

  Args:
    outputs: fields with a leading layer axis, or tuples over layers.
    layer: index (negative from the last) or the name of a feature stage.
    side: "student" or "teacher", for the message.

  Returns:
    Outputs whose per-layer fields lack the layer axis.

  Raises:
    KdjaxError: when there is no such layer.
  """
  held = {field: maps for field in PER_STAGE if (maps := getattr(outputs, field)) is not None}
  if isinstance(layer, str) and not held:
    held = {"features": {}}
  chosen = {field: _stage(maps, layer, side) for field, maps in held.items()}
  if isinstance(layer, str):
    return dataclasses.replace(outputs, **chosen)
  for field in PER_LAYER:
    value = getattr(outputs, field)
    if value is None:
      continue
    depth = len(value) if isinstance(value, tuple) else value.shape[0]
    if not -depth <= layer < depth:
      raise KdjaxError(
        f"{side} layer {layer} does not exist; the {side} has {depth} layers, 0 to {depth - 1}"
      )
    chosen[field] = value[layer]
  return dataclasses.replace(outputs, **chosen)


def _stage(maps: Mapping[str, jax.Array], layer: int | str, side: str) -> dict[str, jax.Array]:
  names = sorted(maps)
  indexed = not isinstance(layer, str) and -len(names) <= layer < len(names)
  name = names[layer] if indexed else layer
  if name not in names:
    raise KdjaxError(f"{side} layer {layer!r} does not exist; its stages are {names}")
  return {name: maps[name]}


def _part(variables: ObjectiveVars, name: str) -> ObjectiveVars:
  return ObjectiveVars(variables.params[name], variables.state[name])


def _gather(every: Mapping[str, ObjectiveVars]) -> ObjectiveVars:
  return ObjectiveVars(
    {name: own.params for name, own in every.items()},
    {name: own.state for name, own in every.items()},
  )


def _join(*names: str) -> str:
  return "/".join(name for name in names if name)


def _union(every) -> Taps:
  every = list(every)
  return Taps(
    frozenset().union(*(taps.student for taps in every)),
    frozenset().union(*(taps.teacher for taps in every)),
  )


def _key(rng: jax.Array | None, name: str) -> jax.Array | None:
  # From the name alone, so that adding a part leaves the others' initial values as they were.
  return None if rng is None else jax.random.fold_in(rng, zlib.crc32(name.encode()))
