"""Is the method better than the baseline? A paired comparison over seeds, told in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr  # scipy.stats would add a second to every start

from kdjax.errors import KdjaxError

SIGNIFICANT = 0.05


def paired_comparison(baseline: Sequence[float], method: Sequence[float]) -> dict[str, Any]:
  """Compares two variants that were run with the same seeds.

  Args:
    baseline: one value per seed.
    method: one value per seed, in the same order.

  Returns:
    `seeds`, their number; `mean` and `std` (n - 1 in the denominator; None for one seed), each by
    variant; `paired_difference`, the mean of method - baseline; `difference_std`; `p_value` of the
    two-sided paired t-test. The p-value is None where the test says nothing: for one seed, and
    where the difference is the same for all seeds. All plain floats.

  Raises:
    KdjaxError: lists that are empty, of different lengths, or not finite.
  """
  pair = {
    "baseline": np.asarray(baseline, np.float64),
    "method": np.asarray(method, np.float64),
  }
  shapes = {values.shape for values in pair.values()}
  if len(shapes) != 1 or pair["method"].ndim != 1 or not pair["method"].size:
    raise KdjaxError(
      f"the comparison got {len(baseline)} value(s) of the baseline and {len(method)} of the"
      " method; one of each per seed is wanted"
    )
  for name, values in pair.items():
    if not np.isfinite(values).all():
      raise KdjaxError(f"the comparison got {values.tolist()} for the {name}; finite values wanted")
  difference = pair["method"] - pair["baseline"]
  several = difference.size > 1
  # Differences that are equal but for rounding have no spread that a test could use.
  scale = max(float(np.max(np.abs(values))) for values in pair.values())
  constant = np.ptp(difference) <= 1e-12 * scale
  p_value = None
  if several and not constant:
    statistic = difference.mean() / (difference.std(ddof=1) / np.sqrt(difference.size))
    p_value = float(2 * stdtr(difference.size - 1, -abs(statistic)))
  return {
    "seeds": difference.size,
    "mean": {name: float(values.mean()) for name, values in pair.items()},
    "std": {name: _std(values) for name, values in pair.items()},
    "paired_difference": float(difference.mean()),
    "difference_std": _std(difference),
    "p_value": p_value,
  }


def verdict(comparison: Mapping[str, Any], *, metric: str, higher_is_better: bool) -> str:
  """One sentence on a comparison: what it shows, and what it does not.

  Args:
    comparison: from `paired_comparison`.
    metric: its name.
    higher_is_better: the direction of the metric.

  Returns:
    A sentence that claims a difference only where p < 0.05, or where every seed shows the same one.
  """
  seeds, difference = comparison["seeds"], comparison["paired_difference"]
  spread, p_value = comparison["difference_std"], comparison["p_value"]
  size = f"{abs(difference):.4g}"
  if spread is not None:
    size += f" ± {spread:.2g}"
  side = "above" if difference > 0 else "below"
  judged = "better" if (difference > 0) == higher_is_better else "worse"
  direction = f"{'higher' if higher_is_better else 'lower'} is better"
  if difference == 0 and not spread:
    return f"{metric}: the method and the baseline are equal ({_count(seeds)})."
  if seeds == 1:
    return (
      f"{metric}: the method is {side} the baseline by {size} ({judged}: {direction}), with one"
      " seed, which cannot tell a difference from chance."
    )
  if p_value is None:
    return (
      f"{metric}: the method is {side} the baseline by {size} with every seed ({judged}:"
      f" {direction}; {_count(seeds)}, no spread, so no test)."
    )
  test = f"paired t-test p={p_value:.2g}, {_count(seeds)}"
  if p_value < SIGNIFICANT:
    return f"{metric}: the method is {side} the baseline by {size} ({judged}: {direction}; {test})."
  return (
    f"{metric}: no difference that {_count(seeds)} can show; the method's mean is {side} the"
    f" baseline's by {size} ({direction}; {test})."
  )


def _std(values: np.ndarray) -> float | None:
  return float(values.std(ddof=1)) if values.size > 1 else None


def _count(seeds: int) -> str:
  return f"{seeds} seed{'s' if seeds != 1 else ''}"
