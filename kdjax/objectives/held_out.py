"""Labels where some classes are held out: what is told about the others alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Batch, Objective, ObjectiveResult, Taps, Term, valid


def base_cross_entropy(*, novel: Sequence[int]) -> Objective:
  """Cross-entropy among the base classes; the scores of the novel ones are left alone.

  Ordinary cross-entropy would push every image away from what the novel classes are called.

  Args:
    novel: the held-out classes; a data set with named classes gives them. Examples of theirs, and
      those without a label, do not count.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    logits = among_base(student.logits, novel)
    labels, where = base_labels(batch, novel, student.logits.shape[-1])
    return ObjectiveResult(
      {"": Term(losses.cross_entropy(logits, labels, where=where), where)},
    )

  return Objective(apply=apply, taps=Taps(frozenset({"logits"})))


def base_classes(novel: Sequence[int], classes: int) -> list[int]:
  """The classes that are not novel; raises KdjaxError where none is left or one does not exist."""
  base = sorted(set(range(classes)) - set(novel))
  if not base or any(not 0 <= each < classes for each in novel):
    raise KdjaxError(f"novel = {list(novel)} must be some of the classes 0 .. {classes - 1}")
  return base


def among_base(
  logits: Float[Array, "*batch classes"], novel: Sequence[int]
) -> Float[Array, "*batch base"]:
  """The logits of the base classes alone."""
  return logits[..., np.asarray(base_classes(novel, logits.shape[-1]))]


def base_labels(
  batch: Batch, novel: Sequence[int], classes: int
) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
  """(labels as positions among the base classes, which of them count)."""
  places = np.full(classes, -1, np.int32)
  base = base_classes(novel, classes)
  places[base] = np.arange(len(base))
  label = batch["label"]
  found = jnp.where(label >= 0, jnp.asarray(places)[jnp.maximum(label, 0)], -1)
  return found, valid(batch, found) & (found >= 0)
