"""Which examples to ask a teacher about that is sometimes wrong: a game against its mistakes.

The sampler says how likely each example is to be asked about; an adversary then says which m of the
pool's n labels are wrong; the sampler gets the gains of the others. So the hardest examples, where
a teacher errs most, are asked about less than hard ones.

Reference:
  Baykal et al., "Robust Active Distillation", ICLR 2023, https://arxiv.org/abs/2210.01213. No code
  was published. The budget's inclusion probabilities are the exact answer to the same game for
  several draws without replacement; the tests compare both with a linear program.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from kdjax.errors import KdjaxError

LEAST_GAIN = 1e-6


def margin_gains(probs: Float[np.ndarray, "pool classes"]) -> Float[np.ndarray, "pool"]:
  """1 - (the likeliest class's probability - the next one's), in (0, 1]."""
  top = np.partition(np.asarray(probs, np.float64), -2, axis=-1)
  return np.maximum(1 - (top[:, -1] - top[:, -2]), LEAST_GAIN)


def entropy_gains(probs: Float[np.ndarray, "pool classes"]) -> Float[np.ndarray, "pool"]:
  """The entropy in nats."""
  probs = np.asarray(probs, np.float64)
  return np.maximum(-(probs * np.log(np.maximum(probs, 1e-30))).sum(-1), LEAST_GAIN)


def robust_distribution(
  gains: Float[np.ndarray, "pool"], wrong: int
) -> tuple[Float[np.ndarray, "pool"], float]:
  """The sampler's best distribution for one draw, and the game's value.

  With g sorted from the largest and H_k the sum of the first k of 1 / g: k* maximises
  (k - m) / H_k over k > m, p = 1 / (g H_k*) for the first k*, and (k* - m) / H_k* is the value.

  Args:
    gains: of each example, > 0.
    wrong: m, how many labels of the pool are wrong, in [0, pool).

  Raises:
    KdjaxError: gains that are not positive, or no label that is right.
  """
  gains = _checked(gains, wrong)
  order = np.argsort(-gains, kind="stable")
  inverse = np.cumsum(1 / gains[order])
  count = np.arange(1, len(gains) + 1)
  value = np.where(count > wrong, (count - wrong) / inverse, -np.inf)
  best = int(np.argmax(value))
  probs = np.zeros(len(gains))
  chosen = order[: best + 1]
  probs[chosen] = 1 / (gains[chosen] * inverse[best])
  return probs, float(value[best])


def robust_inclusions(
  gains: Float[np.ndarray, "pool"], wrong: int, budget: int
) -> tuple[Float[np.ndarray, "pool"], float]:
  """The best probabilities of being among `budget` different examples, and the game's value.

  For a level v examples are filled in order of their gains, each up to min(1, v / g), until the
  budget is spent; v maximises sum_i min(q_i g_i, v) - m v, which is concave in it.

  Args:
    gains: of each example, > 0.
    wrong: m, how many labels of the pool are wrong, in [0, pool).
    budget: how many examples are asked about, in [1, pool].

  Returns:
    (q, value): q in [0, 1] sums to the budget.

  Raises:
    KdjaxError: see `robust_distribution`; a budget out of range.
  """
  gains = _checked(gains, wrong)
  if not 1 <= budget <= len(gains):
    raise KdjaxError(f"the budget of {budget} queries must lie between 1 and {len(gains)}")
  order = np.argsort(-gains, kind="stable")
  sorted_gains = gains[order]

  def filled(level: float) -> tuple[np.ndarray, float]:
    full = np.minimum(1.0, level / sorted_gains)
    q = np.clip(budget - (np.cumsum(full) - full), 0, full)
    return q, np.minimum(q * sorted_gains, level).sum() - wrong * level

  low, high = 0.0, float(sorted_gains[0])
  for _ in range(200):  # a third of the interval goes each time
    third = (high - low) / 3
    if filled(low + third)[1] < filled(high - third)[1]:
      low += third
    else:
      high -= third
  level = (low + high) / 2
  q, value = filled(level)
  # Where the level leaves some of the budget, it pays nothing against this adversary; it is spent
  # in the same order, so that exactly `budget` examples are asked about.
  left = budget - q.sum()
  room = 1 - q
  q = q + np.clip(left - (np.cumsum(room) - room), 0, room)
  out = np.zeros(len(gains))
  out[order] = np.clip(q, 0, 1)
  return out, float(value)


def systematic_sample(
  inclusions: Float[np.ndarray, "pool"], rng: np.random.Generator
) -> Int[np.ndarray, "budget"]:
  """Sorted positions of sum(q) different examples, i among them with probability q_i.

  One offset, and every whole step from there along the running sum of q in random order.

  Args:
    inclusions: q in [0, 1], whose sum is a whole number.
    rng: draws the order and the offset.
  """
  q = np.asarray(inclusions, np.float64)
  budget = round(q.sum())
  order = rng.permutation(len(q))
  ends = np.cumsum(q[order])
  ends *= budget / ends[-1]  # so that rounding costs no example
  marks = np.arange(budget) + rng.random()
  return np.sort(order[np.searchsorted(ends, marks, side="right").clip(0, len(q) - 1)])


def _checked(gains: np.ndarray, wrong: int) -> np.ndarray:
  gains = np.asarray(gains, np.float64)
  if gains.ndim != 1 or not len(gains) or not (np.isfinite(gains) & (gains > 0)).all():
    raise KdjaxError("gains must be one positive number for each example of the pool")
  if not 0 <= wrong < len(gains):
    raise KdjaxError(f"{wrong} wrong labels of {len(gains)}: at least one must be right")
  return gains
