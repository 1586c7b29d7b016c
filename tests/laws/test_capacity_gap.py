"""The law of the capacity gap: what is known is found, and what is not is said."""

import doctest
import math

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.laws import Run, best_teacher, capacity_gap, choose_teacher, fit_capacity_gap

STUDENTS = (1e8, 2e8, 4e8, 8e8)
STEPS = (1.2, 1.7, 2.5, 4.0, 8.0)


def grid(ratios, noise=0.0, rng=None):
  """Runs whose score is a parabola over log size with its top at ratio * student."""
  runs = []
  for student, ratio in zip(STUDENTS, ratios, strict=True):
    for step in STEPS:
      score = 30 - 2 * math.log(step / ratio) ** 2
      score += noise * rng.standard_normal() if noise else 0
      runs.append(Run(student, step * student, score))
  return runs


@pytest.mark.parametrize("ratio", [1.5, 2.5, 6.0])
def test_a_known_ratio_is_found_in_any_unit_and_direction(ratio):
  runs = grid([ratio] * 4)
  law = fit_capacity_gap(runs)
  assert law.ratio == pytest.approx(ratio, rel=1e-9)
  assert law.interval == pytest.approx((ratio, ratio), rel=1e-9)
  assert [best.student for best in law.best] == list(STUDENTS)
  assert all(best.interior for best in law.best)
  millions = [Run(s / 1e6, t / 1e6, -score) for s, t, score in reversed(runs)]
  other = fit_capacity_gap(millions, higher_is_better=False)
  assert other.ratio == pytest.approx(ratio, rel=1e-9)


def test_the_line_through_the_origin():
  law = fit_capacity_gap(grid([2.0, 3.0, 2.0, 3.0]))
  # Sizes 1, 2, 4, 8: (2 + 3 * 4 + 2 * 16 + 3 * 64) / (1 + 4 + 16 + 64).
  assert law.ratio == pytest.approx(238 / 85, rel=1e-9)
  low, high = law.interval
  assert 2 - 1e-9 < low < law.ratio < high < 3 + 1e-9
  assert fit_capacity_gap(grid([2.0, 3.0, 2.0, 3.0])) == law
  narrower = fit_capacity_gap(grid([2.0, 3.0, 2.0, 3.0]), level=0.5).interval
  assert low < narrower[0] < narrower[1] < high


def test_the_interval_widens_with_noise_and_mostly_holds_the_truth():
  rng = np.random.default_rng(0)
  width, held = {}, {}
  for noise in (0.02, 0.1):
    intervals = np.array(
      [fit_capacity_gap(grid([2.5] * 4, noise, rng), resamples=200).interval for _ in range(60)]
    )
    width[noise] = np.ptp(intervals, axis=1).mean()
    held[noise] = ((intervals[:, 0] < 2.5) & (intervals[:, 1] > 2.5)).mean()
  assert 3 < width[0.1] / width[0.02] < 8
  # Four students are few: the nominal 95% is not reached.
  assert all(0.6 < share < 1 for share in held.values())


def test_repeated_runs_are_averaged():
  runs = grid([2.5] * 4)
  pairs = [Run(s, t, score + shift) for s, t, score in runs for shift in (-1, 1)]
  assert fit_capacity_gap(pairs).ratio == pytest.approx(2.5, rel=1e-9)


def test_without_a_maximum_inside_the_best_that_was_tried_is_told():
  rising, bowl = [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 1.0, 5.0]
  assert best_teacher([10, 20, 40, 80], rising) == (80, False)
  assert best_teacher([10, 20, 40, 80], bowl) == (80, False)
  assert best_teacher([20, 10, 10], [1.0, 1.5, 2.0]) == (10, False)
  law = fit_capacity_gap([Run(5, t, s) for t, s in zip([10, 20], [2, 1], strict=True)])
  assert (law.ratio, law.interval) == (2.0, None)
  assert not law.best[0].interior


def test_the_recommended_teacher():
  assert choose_teacher(1.0, [2.0, 2.5, 4.0]) == 2.5
  assert choose_teacher(1.0, [8.0, 4.0, 2.0], ratio=fit_capacity_gap(grid([6.0] * 4)).ratio) == 8.0
  assert choose_teacher(2.0, [20.0, 5.0, 1.25]) == 5.0
  assert choose_teacher(1.0, [4.0, 1.0], ratio=2.0) == 1.0


def test_bad_input_is_named():
  with pytest.raises(KdjaxError, match="no runs"):
    fit_capacity_gap([])
  with pytest.raises(KdjaxError, match=r"score=nan\); positive sizes and a finite score"):
    fit_capacity_gap([Run(1, 2, math.nan)])
  with pytest.raises(KdjaxError, match=r"\[2\.0\]; at least two different"):
    fit_capacity_gap([Run(1, 2, 3), Run(1, 2, 4)])
  with pytest.raises(KdjaxError, match="level is 95"):
    fit_capacity_gap(grid([2.5] * 4), level=95)
  with pytest.raises(KdjaxError, match="available is empty"):
    choose_teacher(1.0, [])
  with pytest.raises(KdjaxError, match="ratio 0"):
    choose_teacher(1.0, [2.0], ratio=0)


def test_examples():
  assert doctest.testmod(capacity_gap).failed == 0
