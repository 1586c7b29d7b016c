"""Matching the few likeliest tokens of a teacher with another tokenizer, step by aligned step."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.losses import TopK
from kdjax.objectives.base import Objective, ObjectiveResult
from kdjax.objectives.sequences import at_positions
from kdjax.objectives.tokens import logit_taps, map_logits

KEY = "teacher_place"


def match_distribution(
  *,
  shared_tokens: tuple[Sequence[int], Sequence[int]],
  k: int = 5,
  tail: str = "bucket",
  chunk_size: int | None = None,
) -> Objective:
  """KL(teacher || student) where a token of both sides says the same, the label's NLL elsewhere.

  At a step whose token is the same on both sides, the target is the teacher's k likeliest tokens,
  as far as the student's vocabulary has them. At any other step it is the label, and the loss is
  its negative log-likelihood.

  Args:
    shared_tokens: (student's ids, teacher's ids) of the tokens that both vocabularies have; from a
      config, those of the data.
    k: tokens that the teacher tells at a step; 5 in the paper, whose teacher tells no more.
    tail: what becomes of the rest, the tokens that the student does not have included; see
      `kdjax.losses.sparse_forward_kl`. "drop" is the official code's, in which it is lost.
    chunk_size: see `token_level`.

  Returns:
    An objective over batches of `config.data.teacher_tokenizer` with `config.data.warped`.

  Raises:
    KdjaxError: no shared token or k below 1; when traced, a batch without aligned steps.

  Reference:
    Fu et al., "Specializing Smaller Language Models towards Multi-Step Reasoning", ICML 2023,
    https://arxiv.org/abs/2301.12726 (FranxYao/FlanT5-CoT-Specialization).
  """
  if k < 1:
    raise KdjaxError(f"match_distribution: k = {k} must be at least 1")
  ours, theirs = (np.asarray(ids, np.int32) for ids in shared_tokens)
  if not len(ours):
    raise KdjaxError("match_distribution: the two vocabularies have no token in common")

  def apply(variables, student, teacher, batch, *, step, rng):
    if KEY not in batch:
      raise KdjaxError(
        "the batch has no aligned steps of the teacher; set config.data.teacher_tokenizer and"
        " config.data.warped = True"
      )
    places = batch[KEY]
    beside = at_positions(teacher, jnp.maximum(places, 0), "the teacher")

    def loss_fn(student_logits, teacher_logits, labels, same, *, where):
      vocab = student_logits.shape[-1]
      table = jnp.full(teacher_logits.shape[-1], -1, jnp.int32).at[theirs].set(ours)
      told = losses.top_k_signal(teacher_logits, k=k)
      targets = aligned_targets(told, table, jnp.maximum(labels, 0), same, vocab)
      return losses.sparse_forward_kl(student_logits, targets, tail=tail, where=where)

    term, _ = map_logits(
      loss_fn, student, beside, batch, chunk_size=chunk_size, labels=True, beside=(places >= 0,)
    )
    aligned = ((places >= 0) & batch["mask"]).sum(dtype=jnp.float32)
    share = (aligned, batch["mask"].sum(dtype=jnp.float32))
    return ObjectiveResult({"": term}, {"aligned": share})

  return Objective(apply=apply, taps=logit_taps(chunk_size), across_vocabularies=True)


def aligned_targets(
  told: TopK,
  table: Int[Array, "teacher_vocab"],
  labels: Int[Array, "*batch"],
  same: Bool[Array, "*batch"],
  vocab: int,
) -> TopK:
  """What the student is to match, in its own ids.

  Args:
    told: the teacher's [..., K], in its ids.
    table: student's id of each of the teacher's tokens, -1 for none.
    labels: the student's, 0 .. V - 1.
    same: where the step is the teacher's too; elsewhere, and where the student has none of the
      teacher's tokens, the target is the label.
    vocab: V.

  Returns:
    [..., K]; slots that are not used have log-probability -inf, and the mass is what is left.
  """
  ids = table[told.ids]
  kept = (ids >= 0) & same[..., None]
  first = jnp.broadcast_to(jnp.arange(ids.shape[-1]) == 0, ids.shape)
  alone = first & ~kept.any(-1, keepdims=True)
  log_probs = jnp.where(kept, told.log_probs.astype(jnp.float32), -jnp.inf)
  log_probs = jnp.where(alone, 0.0, log_probs)
  ids = jnp.where(alone, labels[..., None], jnp.where(kept, ids, 0))
  return TopK(ids, log_probs, vocab=vocab, temperature=told.temperature)
