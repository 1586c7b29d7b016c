"""EchoAtt's first stage: a student with shared attention learns from its teacher's word alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.models.transformer.sharing import block_ends
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, masked_sum, valid
from kdjax.objectives.tokens import logit_taps, map_logits


def echoatt(
  *,
  attention_from: Sequence[int],
  pseudo_weight: float = 1.0,
  kd_weight: float = 1.0,
  hidden_weight: float = 1.0,
  chunk_size: int | None = None,
) -> Objective:
  """CE with the teacher's likeliest tokens + KL(teacher || student) + states at the ends of blocks.

  The last is the sum over the blocks that share an attention map of the mean squared difference
  between the student's states after the block's last layer and the teacher's after the same layer.
  It is a mean over tokens and channels. That these three make up the first of two stages is what
  summaries of the paper say; it was read in no code, and the weights are ours.

  Args:
    attention_from: the student's map, of as many layers as the teacher has.
    pseudo_weight: of the cross-entropy with the teacher's choices.
    kd_weight: of the divergence.
    hidden_weight: of the states; 0 leaves them out.
    chunk_size: see `token_level`.

  Returns:
    An objective that reads no labels but where they are known: those positions count.

  Raises:
    KdjaxError: a map without blocks; when shapes are known, other depths or widths.

  Reference:
    Rajabzadeh et al., "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language
    Models", 2024, https://arxiv.org/abs/2409.14595.
  """
  ends = block_ends(tuple(attention_from))
  if not ends:
    raise KdjaxError(
      f"echoatt: attention_from = {list(attention_from)} shares no attention; give the map of"
      " config.student.attention_from"
    )

  def loss(student_logits, teacher_logits, labels, *, where):
    choice = jnp.argmax(teacher_logits, axis=-1)
    pseudo = losses.cross_entropy(student_logits, choice, where=where)
    kd = losses.forward_kl(student_logits, teacher_logits, where=where)
    return pseudo_weight * pseudo + kd_weight * kd, {"loss/pseudo": pseudo, "loss/kd": kd}

  def apply(variables, student, teacher, batch, *, step, rng):
    term, parts = map_logits(loss, student, teacher, batch, chunk_size=chunk_size, labels=True)
    terms = {"tokens": term}
    if hidden_weight:
      ours, theirs = student.hidden_states, jax.lax.stop_gradient(teacher.hidden_states)
      if ours.shape != theirs.shape or len(ours) != len(attention_from):
        raise KdjaxError(
          f"echoatt: the student has hidden states {ours.shape}, the teacher {theirs.shape} and"
          f" attention_from {len(attention_from)} layers; they must be of the same depth and width"
        )
      where = valid(batch, batch["label"]) & (batch["label"] >= 0)
      at = jnp.array(ends)
      difference = jnp.where(where[..., None], (ours[at] - theirs[at]).astype(jnp.float32), 0.0)
      terms["hidden"] = Term(jnp.square(difference).mean(-1).sum(0), where, hidden_weight)
    return ObjectiveResult(terms, {name: masked_sum(*part[:2]) for name, part in parts.items()})

  taps = logit_taps(chunk_size)
  states = frozenset({"hidden_states"} if hidden_weight else ())
  return Objective(apply=apply, taps=Taps(taps.student | states, taps.teacher | states))
