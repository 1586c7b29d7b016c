"""CLIP's own objective: each image finds its text in the batch, and each text its image."""

from __future__ import annotations

from kdjax import losses
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid


def image_text_contrastive() -> Objective:
  """The symmetric contrastive loss between images and the texts of their classes.

  Images of one class have one text, which is no wrong answer to any of them: pairs of equal labels
  are left out of each other's alternatives. Examples without a label do not count.

  Returns:
    An objective that reads `hidden` (scaled embeddings of the images) and `head` (those of the
    classes' texts), such as `kdjax.models.clip` gives.

  Reference:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
    2021, https://arxiv.org/abs/2103.00020.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    label = batch["label"]
    where = valid(batch, label) & (label >= 0)
    # [B, classes] to [B, B]: column j is the text of example j.
    scores = student.head.logits(student.hidden)[:, label]
    values = losses.paired_cross_entropy(
      scores, distractors=label[:, None] != label[None, :], where=where
    )
    return ObjectiveResult({"": Term(values, where)})

  return Objective(apply=apply, taps=Taps(frozenset({"hidden", "head"})))
