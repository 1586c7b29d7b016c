"""The signs of teacher hacking: none on a power law, one on a plateau; what golden gives back."""

import doctest

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.laws import detect, fit_power_law, rebound, teacher_hacking

STEPS = np.array([10, 20, 40, 80, 160, 320, 640, 1280])


@pytest.mark.parametrize(("scale", "slope"), [(3.0, 0.5), (0.02, 1.3), (7.0, 0.0)])
def test_a_power_law_is_found_and_not_flagged(scale, slope):
  values = scale * STEPS**-slope
  law = fit_power_law(STEPS, values)
  assert (law.slope, np.exp(law.intercept)) == pytest.approx((slope, scale), abs=1e-9)
  told = detect(STEPS, values)
  assert told.deviation == pytest.approx(0, abs=1e-9) and not told.flagged
  np.testing.assert_allclose(law.at(STEPS), values)


def test_a_late_plateau_is_flagged():
  values = 1 / STEPS
  flat = np.append(values[:4], [values[3]] * 4)
  told = detect(STEPS, flat)
  # log(1/80 * step) at 160, 320, 640 and 1280: log 2, 2 log 2, 3 log 2 and 4 log 2.
  assert told.flagged and told.deviation == pytest.approx(2.5 * np.log(2))
  assert not detect(STEPS, flat, tolerance=2.0).flagged
  faster = np.append(values[:4], values[4:] / 2)
  assert detect(STEPS, faster).deviation == pytest.approx(-np.log(2))
  assert not detect(STEPS, faster).flagged


def test_early_is_a_share_that_leaves_two_points_on_each_side():
  values = np.append(1 / STEPS[:6], [1.0, 1.0])
  assert detect(STEPS, values, early=0.75).law.slope == pytest.approx(1)
  assert detect(STEPS, values, early=0.99).law == detect(STEPS, values, early=0.75).law
  assert detect(STEPS, values, early=0.01).law.slope == pytest.approx(1)


def test_rebound_is_none_on_a_monotone_curve():
  assert rebound([3.0, 2.0, 1.0]) == 0 and rebound([2.0]) == 0
  assert rebound([3.0, 1.0, 2.5]) == 1.5


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: fit_power_law([1], [1.0]), "1 steps and 1 values; 2 or more"),
    (lambda: fit_power_law([1, 2], [1.0, 0.0]), "must be positive and finite"),
    (lambda: fit_power_law([2, 1], [1.0, 2.0]), "ascending"),
    (lambda: detect([1, 2, 3], [1.0, 2.0, 3.0]), "4 or more of both"),
    (lambda: detect(STEPS, 1 / STEPS, early=1.0), "early is 1.0"),
    (lambda: detect(STEPS, 1 / STEPS, tolerance=0), "tolerance is 0"),
    (lambda: rebound([]), "at least one"),
    (lambda: rebound([1.0, float("nan")]), "finite numbers"),
  ],
)
def test_mistakes_are_told(call, message):
  with pytest.raises(KdjaxError, match=message):
    call()


def test_the_examples_hold():
  assert doctest.testmod(teacher_hacking).failed == 0
