"""Which points to ask a teacher about that is sometimes wrong: robust active distillation's game.

The sampler decides how likely each point is to be asked about, an adversary then decides for which
points the teacher is wrong, which makes these worth nothing. The hardest points are worth most, but
to ask about them alone is to lose them all.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from kdjax.errors import KdjaxError

LEAST = 1e-6  # a gain of 0 would be divided by


def margin_gains(probs: Float[np.ndarray, "point class"]) -> Float[np.ndarray, "point"]:
  """1 - (p_1 - p_2), of the two likeliest classes: 1 where they are equal, 0 where all is sure.

  Args:
    probs: [N, V], V >= 2, of the student.

  Returns:
    float64 [N] in [1e-6, 1].
  """
  top = np.sort(np.asarray(probs, np.float64), axis=-1)[:, -2:]
  return np.clip(1 - (top[:, 1] - top[:, 0]), LEAST, 1)


def inclusion_probabilities(
  gains: Float[np.ndarray, "point"], *, wrong: int, budget: int
) -> Float[np.ndarray, "point"]:
  r"""How likely each point is to be among `budget` different ones, at the game's best.

  Maximises over q in [0, 1]^N with sum q = budget the least that is left of
  :math:`\sum_i q_i g_i` when the adversary strikes out `wrong` points. For a level v points are
  filled from the largest gain on, each up to min(1, v / g); the best v maximises
  :math:`\sum_i \min(q_i g_i, v) - wrong \cdot v`, which is concave in v. Where no q is 1, q g is
  the same for all points that are asked about: of these the hardest least often.

  Args:
    gains: [N], >= 0; what a right label of each point is worth.
    wrong: m, how many labels of the N the teacher is taken to get wrong; at most N - 1 count.
    budget: b, 1 .. N.

  Returns:
    float64 [N] in [0, 1] with sum b.

  Raises:
    KdjaxError: no points, negative gains, numbers out of range.

  Example:
    >>> print(inclusion_probabilities(np.array([1.0, 0.5]), wrong=0, budget=1).round(3))
    [1. 0.]
    >>> print(inclusion_probabilities(np.array([1.0, 0.5]), wrong=1, budget=1).round(3))
    [0.333 0.667]

  Reference:
    Baykal et al., "Robust Active Distillation", ICLR 2023, https://arxiv.org/abs/2210.01213. No
    code is public; the game for a budget of different points is solved here, and tested against a
    linear program.
  """
  gains = np.asarray(gains, np.float64)
  if gains.ndim != 1 or not len(gains) or not (gains >= 0).all():
    told = "one value >= 0 a point is wanted"
    raise KdjaxError(f"inclusion_probabilities: gains are {gains}; {told}")
  if wrong < 0 or not 1 <= budget <= len(gains):
    raise KdjaxError(
      f"inclusion_probabilities: wrong = {wrong} must be at least 0 and budget = {budget} lie in"
      f" 1 .. {len(gains)}, the number of points"
    )
  order = np.argsort(-gains, kind="stable")
  own, wrong = np.maximum(gains[order], LEAST), min(wrong, len(gains) - 1)

  def filled(level: float) -> np.ndarray:
    room = np.minimum(1.0, level / own)
    return np.clip(budget - (np.cumsum(room) - room), 0, room)

  def payoff(level: float) -> float:
    return float(filled(level) @ own) - wrong * level

  low, high = 0.0, float(own[0])
  for _ in range(200):
    left, right = low + (high - low) / 3, high - (high - low) / 3
    if payoff(left) < payoff(right):
      low = left
    else:
      high = right
  q = filled((low + high) / 2)
  # What no level has room for adds nothing to the worst case, and is asked about all the same.
  spare = 1 - q
  q += np.clip(budget - q.sum() - (np.cumsum(spare) - spare), 0, spare)
  found = np.empty_like(q)
  found[order] = q
  return found


def systematic_sample(
  probabilities: Float[np.ndarray, "point"], rng: np.random.Generator
) -> Int[np.ndarray, "drawn"]:
  """Different points, as many as the probabilities sum to, each included with its probability.

  Args:
    probabilities: [N] in [0, 1]; the sum is an integer.
    rng: a generator.

  Returns:
    Sorted positions.
  """
  order = rng.permutation(len(probabilities))
  ends = np.cumsum(probabilities[order])
  count = round(ends[-1])
  marks = np.minimum(rng.random() + np.arange(count), ends[-1] * (1 - 1e-12))
  return np.sort(order[np.unique(np.searchsorted(ends, marks, side="right"))])
