"""Whether a student hacks its teacher: what its distances to teacher and truth say over training.

The distance to the teacher is the proxy that training lowers; the one to the truth, an oracle that
stands for it, is what is meant. Hacking: the first falls while the second rises. Distances are in
nats, by step; NumPy alone.

Reference:
  Tiapkin et al., "On Teacher Hacking in Language Model Distillation", ICML 2025,
  https://arxiv.org/abs/2502.02671. That the proxy leaves its power law is the paper's sign of it;
  how far is too far is not published, so that the tolerance is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import KdjaxError


class PowerLaw(NamedTuple):
  """log value = intercept - slope * log step.

  Attributes:
    intercept: log of the value at step 1.
    slope: k; positive where values fall.
  """

  intercept: float
  slope: float

  def at(self, steps: Sequence[float]) -> np.ndarray:
    """The values that it predicts, float64."""
    return np.exp(self.intercept - self.slope * np.log(np.asarray(steps, np.float64)))


class Verdict(NamedTuple):
  """What the proxy alone says, without an oracle.

  Attributes:
    law: fitted to the early part.
    deviation: mean of log(value / law) over the later part; about 0 where the law goes on, positive
      where the values flatten or rise.
    flagged: whether that is more than the tolerance.
  """

  law: PowerLaw
  deviation: float
  flagged: bool


def fit_power_law(steps: Sequence[float], values: Sequence[float]) -> PowerLaw:
  """The power law of least squares in logarithms.

  Args:
    steps: two or more different ones, positive.
    values: of each, positive.

  Raises:
    KdjaxError: fewer points, or some that are not positive and finite.

  Example:
    >>> law = fit_power_law([1, 10, 100], [4.0, 0.4, 0.04])
    >>> print(f"{law.slope:.3f} {law.at([1000])[0]:.4f}")
    1.000 0.0040
  """
  x, y = _series("fit_power_law", steps, values)
  slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
  return PowerLaw(float(intercept), float(-slope))


def detect(
  steps: Sequence[float],
  values: Sequence[float],
  *,
  early: float = 0.5,
  tolerance: float = 0.1,
) -> Verdict:
  """Whether the distance to the teacher leaves the power law of its early part.

  Args:
    steps: four or more, ascending, positive.
    values: the distance at each, positive.
    early: share of the points, in (0, 1), that the law is fitted to; two at least, two at least are
      left.
    tolerance: the deviation, in nats of the logarithm, from which on it is flagged; 0.1 is a tenth
      above the law.

  Raises:
    KdjaxError: fewer points, some that are not positive and finite, or options out of range.

  Example:
    >>> steps = [1, 2, 4, 8, 16, 32]
    >>> detect(steps, [1 / s for s in steps]).flagged
    False
    >>> detect(steps, [1, 1 / 2, 1 / 4, 1 / 8, 1 / 9, 1 / 9]).flagged
    True
  """
  if not 0 < early < 1:
    raise KdjaxError(f"detect: early is {early}; it must lie between 0 and 1")
  if not tolerance > 0:
    raise KdjaxError(f"detect: tolerance is {tolerance}; a positive number wanted")
  x, y = _series("detect", steps, values, least=4)
  count = int(np.clip(round(early * len(x)), 2, len(x) - 2))
  law = fit_power_law(x[:count], y[:count])
  deviation = float(np.mean(np.log(y[count:] / law.at(x[count:]))))
  return Verdict(law, deviation, deviation > tolerance)


def rebound(values: Sequence[float]) -> float:
  """How far the last value is above the smallest: 0 for a curve that falls to its end.

  Of the distance to the oracle it is what hacking costs. It also grows where the student overtakes
  a teacher that is far from the oracle and then follows it; compare it between sources of data.

  Raises:
    KdjaxError: no values, or some that are not finite.

  Example:
    >>> rebound([3.0, 1.0, 1.5])
    0.5
  """
  array = np.asarray(values, np.float64)
  if not array.size or not np.isfinite(array).all():
    raise KdjaxError(f"rebound: values are {list(values)}; finite numbers, at least one, wanted")
  return float(array[-1] - array.min())


def _series(
  name: str, steps: Sequence[float], values: Sequence[float], least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
  fits = x.ndim == 1 and x.shape == y.shape and len(x) >= least
  if not fits or len(np.unique(x)) < len(x) or (np.diff(x) < 0).any():
    raise KdjaxError(
      f"{name}: {len(x)} steps and {len(y)} values; {least} or more of both wanted, at ascending"
      " steps"
    )
  if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
    raise KdjaxError(f"{name}: steps and values must be positive and finite")
  return x, y
