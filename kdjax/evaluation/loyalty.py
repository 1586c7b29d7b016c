"""How loyal a student is to its teacher, in its probabilities and in numbers that it predicts.

Loyalty of labels is `agreement` in `kdjax.evaluation.agreement`. To an ensemble, measure it against
the logits that the student learnt from: `kdjax.losses.combine_teachers` with the same rule.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses.mixtures import generalized_jsd


def probability_loyalty(
  student_logits: Float[Array, "*batch classes"],
  teacher_logits: Float[Array, "*batch classes"],
  *,
  base: float = 2.0,
) -> Float[Array, "*batch"]:
  """One minus the Jensen-Shannon distance, the root of the divergence.

  Args:
    student_logits: [..., K], unnormalised, any float dtype.
    teacher_logits: [..., K], same classes in the same order.
    base: > 1, of the logarithm. In bits (2) loyalty is in [0, 1]; the published numbers are in nats
      (e), where it is at least 1 - sqrt(ln 2) = 0.167.

  Returns:
    float32[...], 1 where the two are the same.

  Raises:
    KdjaxError: shapes that differ, or a base that is not above 1.

  Example:
    >>> teacher, student = jnp.array([0.75, 0.2, 0.05]), jnp.array([0.8, 0.1, 0.1])
    >>> print(f"{probability_loyalty(jnp.log(student), jnp.log(teacher), base=np.e):.4f}")
    0.8853

  Reference:
    Xu et al., "Beyond Preserved Accuracy: Evaluating Loyalty and Robustness of BERT Compression",
    EMNLP 2021, https://arxiv.org/abs/2109.03228 (JetRunner/beyond-preserved-accuracy).
  """
  if not base > 1:
    raise KdjaxError(f"probability_loyalty: base is {base}; it must be above 1")
  nats = generalized_jsd(student_logits, teacher_logits, beta=0.5)
  # Rounding can leave the divergence of equal distributions a hair below 0 or above 1 bit.
  nats = jnp.clip(nats, 0.0, np.log(2))
  return 1 - jnp.sqrt(nats / jnp.float32(np.log(base)))


def regression_loyalty(
  student: Float[Array, "rows"],
  teacher: Float[Array, "rows"],
  where: Bool[Array, "rows"] | None = None,
) -> dict[str, float]:
  """How alike the numbers are that student and teacher predict, such as similarities of sentences.

  The paper names this loyalty without a formula; its task, semantic similarity, is scored by
  Pearson's correlation. Neither correlation sees a shift or a scale of either side; the error does.
  Worked out on the host in float64, over all rows at once.

  Args:
    student: [N], N >= 2 of them counted.
    teacher: [N], the same rows.
    where: [N], True = counted; None counts all.

  Returns:
    `pearson` and `spearman` (of ranks, equal values sharing their mean rank), in [-1, 1], 0 where a
    side is constant; `mae`, the mean absolute difference.

  Raises:
    KdjaxError: shapes that differ, fewer than two rows, or numbers that are not finite.

  Example:
    >>> loyalty = regression_loyalty(np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0]))
    >>> {name: round(value, 6) for name, value in loyalty.items()}
    {'pearson': 1.0, 'spearman': 1.0, 'mae': 1.0}

  Reference:
    Avram et al., "Distilling the Knowledge of Romanian BERTs Using Multiple Teachers", LREC 2022,
    https://arxiv.org/abs/2112.12650
  """
  a, b = (np.asarray(x, np.float64) for x in (student, teacher))
  counted = np.ones(a.shape, bool) if where is None else np.asarray(where)
  if a.ndim != 1 or not a.shape == b.shape == counted.shape:
    raise KdjaxError(
      f"regression_loyalty: student has shape {a.shape}, teacher {b.shape}, where {counted.shape};"
      " one number of each per row wanted"
    )
  a, b = a[counted], b[counted]
  if len(a) < 2 or not np.isfinite([a, b]).all():
    raise KdjaxError(
      f"regression_loyalty: {len(a)} row(s) count; at least two, of finite numbers, wanted"
    )
  return {
    "pearson": _correlation(a, b),
    "spearman": _correlation(_ranks(a), _ranks(b)),
    "mae": float(np.abs(a - b).mean()),
  }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  a, b = a - a.mean(), b - b.mean()
  # Each divided by its length first: products of squares could overflow.
  return float(np.clip(a / np.linalg.norm(a) @ (b / np.linalg.norm(b)), -1, 1))


def _ranks(x: np.ndarray) -> np.ndarray:
  _, place, count = np.unique(x, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[place]
