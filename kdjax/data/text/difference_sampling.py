"""MiniPLM: the text that a teacher knows much better than a small reference model does.

Distillation before training: both models score the corpus once, part of it is kept, and a student
of any vocabulary learns from what is kept by the usual loss on labels.

Reference:
  Gu et al., "MiniPLM: Knowledge Distillation for Pre-Training Language Models", ICLR 2025,
  https://arxiv.org/abs/2410.17215 (thu-coai/MiniPLM, scripts/miniplm/difference_sampling).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from kdjax.errors import KdjaxError


def difference_scores(
  teacher_log_probs: Float[np.ndarray, "rows"],
  reference_log_probs: Float[np.ndarray, "rows"],
  tokens: Int[np.ndarray, "rows"] | None = None,
) -> Float[np.ndarray, "rows"]:
  """log p_teacher - log p_reference of each sequence, per token.

  Args:
    teacher_log_probs: [N], each sequence's sum over its predicted tokens, in nats; padding is not
      part of it.
    reference_log_probs: [N], of the reference model, over the same tokens.
    tokens: [N], how many there are in each, at least 1; None where the sums are means already. The
      score is per token in any case: a sum would be the larger the longer a sequence is.

  Returns:
    float64 [N]; large where the teacher predicts better.

  Raises:
    KdjaxError: shapes that differ, a number that is not finite, or a sequence without tokens.

  Example:
    >>> difference_scores(np.array([-20.0, -30.0]), np.array([-30.0, -30.0]), np.array([10, 10]))
    array([1., 0.])
  """
  teacher = np.asarray(teacher_log_probs, np.float64)
  reference = np.asarray(reference_log_probs, np.float64)
  count = np.ones(teacher.shape, np.int64) if tokens is None else np.asarray(tokens)
  if teacher.ndim != 1 or not teacher.shape == reference.shape == count.shape:
    raise KdjaxError(
      f"difference_scores: teacher_log_probs have shape {teacher.shape}, reference_log_probs"
      f" {reference.shape}, tokens {count.shape}; one number of each per sequence wanted"
    )
  for name, values, good in (
    ("teacher_log_probs", teacher, np.isfinite(teacher)),
    ("reference_log_probs", reference, np.isfinite(reference)),
    ("tokens", count, count >= 1),
  ):
    if not good.all():
      place = int(np.argmin(good))
      raise KdjaxError(
        f"difference_scores: {name}[{place}] = {values[place]}; finite log-probabilities of at"
        " least one token wanted"
      )
  return (teacher - reference) / count


def keep_largest(
  scores: Float[np.ndarray, "rows"], *, ratio: float = 0.5
) -> Int[np.ndarray, "kept"]:
  """The int(ratio N) sequences with the largest scores, in the order that they have.

  Args:
    scores: [N], finite. Of equal ones the first are kept.
    ratio: in [0, 1], the share to keep.

  Returns:
    int64, strictly increasing places.

  Raises:
    KdjaxError: a ratio out of range, or scores that are not finite numbers in one row.

  Example:
    >>> keep_largest(np.array([0.1, 0.9, 0.5, 0.7]), ratio=0.5)
    array([1, 3])
  """
  scores = np.asarray(scores)
  if not 0 <= ratio <= 1:
    raise KdjaxError(f"keep_largest: ratio is {ratio}; it must lie between 0 and 1")
  if scores.ndim != 1 or not np.isfinite(scores).all():
    raise KdjaxError(
      f"keep_largest: scores have shape {scores.shape}; one finite number per sequence wanted"
    )
  best = np.argsort(-scores, kind="stable")[: int(ratio * len(scores))]
  return np.sort(best)
