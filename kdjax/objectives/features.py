"""Objectives on features: any feature loss of `kdjax.losses` by name, and what methods share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Batch, Objective, ObjectiveResult, Taps, Term, valid
from kdjax.objectives.combinators import combine, on_layers
from kdjax.objectives.logits import cross_entropy
from kdjax.resolve import hint, resolve

Pairs = Sequence[Sequence[str | int]]
STAGES = (("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3"))


def feature_kd(
  *,
  loss: str,
  pairs: Pairs | None = None,
  feature_weight: float = 1.0,
  ce_weight: float = 1.0,
  **arguments,
) -> Objective:
  """Any loss of `kdjax.losses` on student and teacher features, with the labels' cross-entropy.

  Args:
    loss: such as "attention_transfer" or "relational_distance".
    pairs: (student stage, teacher stage) whose maps are compared, by name or index; the losses of
      all pairs are added. None compares the pooled embeddings.
    feature_weight: of the sum.
    ce_weight: of the cross-entropy with labels; 0 leaves labels out.
    **arguments: passed on to the loss.

  Returns:
    An objective with the terms `feature` (for each pair) and `ce`.

  Raises:
    KdjaxError: an unknown loss or argument; when shapes are known, a stage that does not exist, or
      shapes that the loss does not take.
  """
  fit = [name for name in losses.__all__ if _reads_features(getattr(losses, name))]
  if loss not in fit:
    raise KdjaxError(
      f"config.objective.loss = {loss!r} is no loss on two features alone{hint(loss, fit)}"
    )
  function = resolve(losses, loss, arguments, field="config.objective.loss", given=("where",))
  field = "embedding" if pairs is None else "features"

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = features_of(student, field), features_of(teacher, field)
    where = counted(batch, own)
    return ObjectiveResult({"": Term(function(own, told, where=where), where)})

  taps = frozenset({field})
  compared = Objective(apply=apply, taps=Taps(taps, taps))
  if pairs is not None:
    compared = over_stages(compared, pairs)
  return beside_labels(compared, feature_weight, ce_weight)


def over_stages(
  objective: Objective, pairs: Pairs, weights: Sequence[float] | None = None
) -> Objective:
  """The sum of an objective over (student stage, teacher stage), with weights of 1 unless given."""
  return on_layers(objective, pairs, weights=(1.0,) * len(pairs) if weights is None else weights)


def beside_labels(objective: Objective, feature_weight: float, ce_weight: float) -> Objective:
  """`feature_weight` objective + `ce_weight` cross-entropy; the second is left out at weight 0."""
  terms = {"feature": (feature_weight, objective)}
  if ce_weight:
    terms["ce"] = (ce_weight, cross_entropy())
  return combine(terms)


def features_of(outputs, field: str) -> Array:
  """The embedding, or the one map that is left of a field inside `on_layers`."""
  value = getattr(outputs, field)
  if isinstance(value, Mapping):
    (value,) = value.values()
  return value


def counted(batch: Batch, features: Array) -> Bool[Array, "batch"]:
  """Which examples count."""
  return valid(batch, jax.ShapeDtypeStruct(features.shape[:1], jnp.float32))


def _reads_features(function) -> bool:
  if not inspect.isfunction(function):
    return False
  arrays = [
    p.name
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.POSITIONAL_OR_KEYWORD
  ]
  return arrays == ["student_features", "teacher_features"]
