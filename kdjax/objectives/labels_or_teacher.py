"""Labels where there are any, the teacher's word on the other examples."""

from __future__ import annotations

import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid

_LOGITS = frozenset({"logits"})


def labels_or_teacher(
  *, temperature: float = 1.0, kd_weight: float = 1.0, ce_weight: float = 1.0
) -> Objective:
  """Cross-entropy with labels on labelled examples, with the teacher's probabilities on others.

  Args:
    temperature: T > 0, of both sides; the teacher's term is multiplied by T^2.
    kd_weight: of the teacher's term.
    ce_weight: of the labels' term.

  Raises:
    KdjaxError: a temperature out of range.

  Reference:
    Baykal et al., "Robust Active Distillation", ICLR 2023, https://arxiv.org/abs/2210.01213, at
    temperature 1.
  """
  if not temperature > 0:
    raise KdjaxError(f"labels_or_teacher: temperature = {temperature} must be positive")

  def apply(variables, student, teacher, batch, *, step, rng):
    own = student.require("logits", "the student")
    told = teacher.require("logits", "the teacher")
    label = batch["label"]
    counted, known = valid(batch, label), label >= 0
    labelled, asked = counted & known, counted & ~known
    ce = losses.cross_entropy(own, jnp.maximum(label, 0), where=labelled)
    kd = losses.hinton_kd(own, told, temperature=temperature, where=asked)
    return ObjectiveResult({"ce": Term(ce, labelled, ce_weight), "kd": Term(kd, asked, kd_weight)})

  return Objective(apply=apply, taps=Taps(_LOGITS, _LOGITS))
