"""DeiT: one token of the student learns the labels, another what the teacher says."""

from __future__ import annotations

import dataclasses

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.tokens import map_logits

_TAPS = Taps(student=frozenset({"logits", "distillation_logits"}), teacher=frozenset({"logits"}))


def distillation_token(
  *,
  hard: bool = True,
  temperature: float = 3.0,
  kd_weight: float = 0.5,
  ce_weight: float = 0.5,
) -> Objective:
  """Cross-entropy of the class token with labels + the distillation token against the teacher.

  Args:
    hard: the second term is the cross-entropy with the teacher's likeliest class, as DeiT's best
      recipe has it; False for T^2 KL(teacher || student).
    temperature: > 0, of the soft term. The soft recipe has 3, with `kd_weight` 0.1.
    kd_weight: weight of the teacher's term.
    ce_weight: weight of the labels' term; 0 leaves labels out.

  Returns:
    An objective for students with the tap distillation_logits, such as `vit` with pool =
    "distilled", whose `logits` are the mean of both heads.

  Raises:
    KdjaxError: a temperature out of range; when traced, a student without such a token.

  Reference:
    Touvron et al., "Training data-efficient image transformers & distillation through attention",
    ICML 2021, https://arxiv.org/abs/2012.12877, equations 2 and 3 (facebookresearch/deit,
    losses.py).
  """
  if not temperature > 0:
    raise KdjaxError(f"distillation_token: temperature = {temperature} must be positive")
  labels = cross_entropy()

  def loss(student_logits, teacher_logits, *, where):
    if hard:
      told = teacher_logits.argmax(-1)
      return losses.cross_entropy(student_logits, told, where=where)
    return losses.hinton_kd(student_logits, teacher_logits, temperature=temperature, where=where)

  def apply(variables, student, teacher, batch, *, step, rng):
    second = student.require("distillation_logits", "the student")
    kd, _ = map_logits(loss, dataclasses.replace(student, logits=second), teacher, batch)
    terms = {"kd": kd._replace(weight=kd_weight)}
    if ce_weight:
      first = dataclasses.replace(student, logits=2 * student.logits - second)
      own = labels.apply(variables, first, teacher, batch, step=step, rng=rng)
      terms["ce"] = own.loss[""]._replace(weight=ce_weight)
    return ObjectiveResult(terms)

  return Objective(apply=apply, taps=_TAPS)
