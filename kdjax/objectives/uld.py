"""ULD: a teacher of any vocabulary, by the shape of its distributions."""

from __future__ import annotations

import functools

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult
from kdjax.objectives.sequences import at_positions, counterparts, mean_weights, sides
from kdjax.objectives.tokens import logit_taps, map_logits


def uld(
  *,
  kd_weight: float = 1.5,
  ce_weight: float = 1.0,
  temperature: float = 1.0,
  chunk_size: int | None = None,
) -> Objective:
  """Universal logit distillation: sorted probabilities of the two sides, position by position.

  The n-th label of a sequence in the student's tokens is compared with the n-th in the teacher's,
  whatever they say, up to the end of the shorter. The distance is averaged over the positions of a
  sequence, then over sequences, as the official code does for a batch of one answer a row; it may
  leave out the end of the student's answer, which counts here. The cross-entropy with labels is
  averaged over all positions.

  Args:
    kd_weight: of the distance (see `kdjax.losses.sorted_probability_distance`).
    ce_weight: of the labels' cross-entropy; 0 leaves it out.
    temperature: > 0; divides both sides' logits in the distance.
    chunk_size: see `token_level`; a sort of both vocabularies is taken per chunk.

  Returns:
    An objective over batches of `config.data.teacher_tokenizer`; without one both sides have the
    same tokens.

  Reference:
    Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for
    LLMs", TMLR 2025, https://arxiv.org/abs/2402.12030
    (Nicolas-BZRD/llm-recipes, models/distillation_model.py).
  """
  if not temperature > 0:
    raise KdjaxError(f"uld: temperature = {temperature} must be positive")
  distance = functools.partial(losses.sorted_probability_distance, temperature=temperature)

  def apply(variables, student, teacher, batch, *, step, rng):
    own, theirs = sides(batch)
    places, where = counterparts(own, theirs)
    beside = at_positions(teacher, places, "the teacher")
    counted = {"mask": where, "weight": mean_weights(where, own.segments)}
    kd, _ = map_logits(distance, student, beside, counted, chunk_size=chunk_size)
    terms = {"kd": kd._replace(weight=kd_weight)}
    if ce_weight:
      ce, _ = map_logits(
        losses.cross_entropy, student, None, batch, chunk_size=chunk_size, labels=True
      )
      terms["ce"] = ce._replace(weight=ce_weight)
    return ObjectiveResult(terms)

  return Objective(apply=apply, taps=logit_taps(chunk_size), across_vocabularies=True)
