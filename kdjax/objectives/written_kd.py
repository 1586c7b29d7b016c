"""The teacher's word on texts that the student wrote, labels on those that it was given."""

from __future__ import annotations

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, valid
from kdjax.objectives.tokens import logit_taps, map_logits


def written_kd(
  *, kd_weight: float = 0.9, ce_weight: float = 0.1, chunk_size: int | None = None
) -> Objective:
  """`kd_weight` KL(teacher || student) on written rows + `ce_weight` cross-entropy on the others.

  Each is a mean over its own tokens. The official code's divergence is a mean over all places of
  the target, those after its end among them, which are left out here.

  Args:
    kd_weight: alpha of the paper's code.
    ce_weight: 1 - alpha.
    chunk_size: see `token_level`.

  Returns:
    An objective with the terms "kd" and "ce" for batches whose `written` [B] says which rows the
    student wrote.

  Raises:
    KdjaxError: when traced, a batch without `written`.

  Reference:
    Elfeki et al., "Return of the Encoder: Maximizing Parameter Efficiency for SLMs", 2025,
    https://arxiv.org/abs/2501.16273; microsoft/encoder-decoder-slm,
    src/mu/train_text2text_by_kd.py (`KDModel`).
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    if "written" not in batch:
      raise KdjaxError(
        "written_kd: nothing says which rows are written; use config.program.name ="
        " 'on_policy_targets', or 'on_policy' with keep_data = True"
      )
    learnt = valid(batch, batch["label"]) & (batch["label"] >= 0)
    written = batch["written"][:, None]

    def kd(logits, teacher_logits, labels, *, where):
      return losses.forward_kl(logits, teacher_logits, where=where)

    def on(function, teacher, where):
      rows = {**batch, "mask": where}
      return map_logits(function, student, teacher, rows, chunk_size=chunk_size, labels=True)[0]

    return ObjectiveResult(
      {
        "kd": on(kd, teacher, learnt & written)._replace(weight=kd_weight),
        "ce": on(losses.cross_entropy, None, learnt & ~written)._replace(weight=ce_weight),
      }
    )

  return Objective(apply=apply, taps=logit_taps(chunk_size))
