"""Labels where they are known, and the teacher's probabilities where they are not."""

from __future__ import annotations

import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Objective, ObjectiveResult
from kdjax.objectives.tokens import logit_taps, map_logits


def labels_or_teacher() -> Objective:
  """Cross-entropy with `batch["label"]`, and where that is negative with what the teacher says.

  One mean over both kinds of examples, at temperature 1.

  Reference:
    Baykal et al., "Robust Active Distillation", ICLR 2023, https://arxiv.org/abs/2210.01213, whose
    student learns from labelled examples and from the soft labels of those it asked about.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    told, _ = map_logits(losses.soft_cross_entropy, student, teacher, batch)
    own, _ = map_logits(losses.cross_entropy, student, None, batch, labels=True)
    values = jnp.where(batch["label"] >= 0, own.values, told.values)
    return ObjectiveResult({"": told._replace(values=values)})

  return Objective(apply=apply, taps=logit_taps(None))
