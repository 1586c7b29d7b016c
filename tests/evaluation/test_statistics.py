"""Paired comparisons and what is said about them."""

import json

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import paired_comparison, verdict


def test_three_seeds_by_hand():
  got = paired_comparison([0.80, 0.82, 0.84], [0.83, 0.84, 0.88])
  # Differences 0.03, 0.02, 0.04: mean 0.03, standard deviation 0.01, t = 0.03 / (0.01 / sqrt 3).
  assert got["paired_difference"] == pytest.approx(0.03)
  assert got["difference_std"] == pytest.approx(0.01)
  assert got["mean"] == {"baseline": pytest.approx(0.82), "method": pytest.approx(0.85)}
  assert got["std"]["baseline"] == pytest.approx(0.02)
  # With 2 degrees of freedom p = 1 - t / sqrt(t² + 2), and t² = 27.
  assert got["p_value"] == pytest.approx(1 - np.sqrt(27 / 29), rel=1e-6)
  assert got["seeds"] == 3
  assert json.loads(json.dumps(got)) == got


def test_one_seed_has_neither_spread_nor_test():
  got = paired_comparison([0.5], [0.6])
  assert got["p_value"] is None and got["difference_std"] is None
  assert got["std"] == {"baseline": None, "method": None}


def test_differences_without_spread_have_no_test():
  got = paired_comparison([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])  # equal but for rounding
  assert got["p_value"] is None
  assert got["paired_difference"] == pytest.approx(0.1)
  same = paired_comparison([0.1, 0.2], [0.1, 0.2])
  assert same["p_value"] is None and same["paired_difference"] == 0


@pytest.mark.parametrize(
  ("baseline", "method", "message"),
  [
    ([], [], "0 value"),
    ([1.0], [1.0, 2.0], r"1 value\(s\) of the baseline and 2"),
    ([1.0, float("nan")], [1.0, 2.0], "for the baseline; finite"),
  ],
)
def test_values_that_cannot_be_compared(baseline, method, message):
  with pytest.raises(KdjaxError, match=message):
    paired_comparison(baseline, method)


def say(baseline, method, higher_is_better=True):
  comparison = paired_comparison(baseline, method)
  return verdict(comparison, metric="accuracy", higher_is_better=higher_is_better)


def test_verdicts():
  assert say([0.80, 0.82, 0.84], [0.83, 0.84, 0.88]) == (
    "accuracy: the method is above the baseline by 0.03 ± 0.01"
    " (better: higher is better; paired t-test p=0.035, 3 seeds)."
  )
  assert "above the baseline by 0.03 ± 0.01 (worse: lower is better;" in say(
    [0.80, 0.82, 0.84], [0.83, 0.84, 0.88], higher_is_better=False
  )
  assert "below the baseline by 0.03 ± 0.01 (worse: higher is better;" in say(
    [0.83, 0.84, 0.88], [0.80, 0.82, 0.84]
  )
  unclear = say([0.8, 0.9, 0.7], [0.9, 0.8, 0.75])
  assert unclear.startswith("accuracy: no difference that 3 seeds can show; the method's mean is")
  assert "better:" not in unclear
  assert "one seed, which cannot tell" in say([0.5], [0.6])
  assert "by 0.1 ± 0 with every seed" in say([0.25, 0.5], [0.35, 0.6]).replace("1.4e-17", "0")
  assert say([0.5, 0.6], [0.5, 0.6]) == "accuracy: the method and the baseline are equal (2 seeds)."
