"""Multi-level logits: two views of an image, several temperatures, relations within the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid
from kdjax.objectives.combinators import combine
from kdjax.objectives.logits import cross_entropy

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def multi_level(
  *,
  temperatures: Sequence[float] = TEMPERATURES,
  kd_weight: float = 0.9,
  ce_weight: float = 0.1,
  weak_weight: float = 0.5,
) -> Objective:
  """Hinton's loss on both views and the correlations of the first, at several temperatures.

  kd_weight sum_T [weak_weight (KD_weak + class_weak + batch_weak) + KD_strong] + ce_weight (CE_weak
  + CE_strong), with `class_correlation` and `batch_correlation` of `kdjax.losses`. It wants batches
  with two views: `config.data.augment` with `two_views`.

  The official code means to leave confident examples out of the terms of the weak view, but reduces
  them first: its mask, of the half of the batch below the median confidence, only halves them. So
  does `weak_weight` here. It also takes the weak view for temperatures 2 and 6 of the strong term,
  which is not followed.

  Args:
    temperatures: each > 0.
    kd_weight: of the teacher's terms.
    ce_weight: of each view's labels; 0 leaves them out.
    weak_weight: of the weak view among the teacher's terms.

  Returns:
    An objective with the terms weak, strong, class, batch and ce.

  Raises:
    KdjaxError: no temperature, or one that is not positive; when traced, a batch of one view.

  Reference:
    Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023 (Jin-Ying/
    Multi-Level-Logit-Distillation, mdistiller/distillers/KD_ours.py).
  """
  if not temperatures or not all(t > 0 for t in temperatures):
    raise KdjaxError(
      f"multi_level: temperatures = {tuple(temperatures)} must hold at least one, all above 0"
    )

  def apply(variables, student, teacher, batch, *, step, rng):
    if "view" not in batch:
      raise KdjaxError(
        "multi_level compares two views of each image, and the batch has one; put two_views into"
        " config.data.augment"
      )
    own, told = (_views(x.require("logits", "a model")) for x in (student, teacher))
    where = valid(batch, student.logits[:, 0]).reshape(-1, 2)[:, 0]

    def at_all(loss: Callable, view: int) -> Float[Array, "batch"]:
      def at(temperature):
        return loss(own[:, view], told[:, view], temperature=temperature, where=where)

      return jax.vmap(at)(jnp.asarray(temperatures, jnp.float32)).sum(0)

    parts = {
      "weak": Term(at_all(losses.hinton_kd, 0), where, weak_weight),
      "class": Term(at_all(losses.class_correlation, 0), where, weak_weight),
      "batch": Term(at_all(losses.batch_correlation, 0), where, weak_weight),
      "strong": Term(at_all(losses.hinton_kd, 1), where),
    }
    return ObjectiveResult(parts)

  taps = frozenset({"logits"})
  terms = {"kd": (kd_weight, Objective(apply=apply, taps=Taps(taps, taps)))}
  if ce_weight:
    terms["ce"] = (2 * ce_weight, cross_entropy())  # a mean over the rows of both views
  return combine(terms)


def _views(logits: Float[Array, "rows vocab"]) -> Float[Array, "batch 2 vocab"]:
  return logits.reshape(-1, 2, logits.shape[-1])
