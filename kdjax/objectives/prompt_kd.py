"""PromptKD: a dual encoder's logits on unlabelled images, imitated through learned prompts."""

from __future__ import annotations

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective
from kdjax.objectives.tokens import token_level


def prompt_kd(*, kd_weight: float = 1000.0, temperature: float = 1.0) -> Objective:
  """w T^2 / V KL(teacher || student) over images, labelled or not.

  Both sides' logits are scaled cosines with the same stored embeddings of the classes, which the
  student (`kdjax.models.open_vocabulary`) takes over from its teacher. The division by V, the
  number of classes, is that of the official code, which averages over elements; so the weight of
  an image falls with the number of classes.

  Images of the held-out classes are among them, without labels: what is learnt about those is
  transductive, not zero-shot.

  Args:
    kd_weight: w; 1000 for most data sets of the paper, 200 for Aircraft, Flowers and DTD.
    temperature: T > 0, beside the scales of the two models.

  Returns:
    The objective.

  Raises:
    KdjaxError: a temperature that is not positive.

  Reference:
    Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024,
    https://arxiv.org/abs/2403.02781 (zhengli97/PromptKD, trainers/promptkd.py).
  """
  if not temperature > 0:
    raise KdjaxError(f"prompt_kd: temperature = {temperature} must be positive")

  def imitate(student_logits, teacher_logits, *, where):
    classes = student_logits.shape[-1]
    kl = losses.hinton_kd(student_logits, teacher_logits, temperature=temperature, where=where)
    return kd_weight / classes * kl

  return token_level(imitate)
