"""Difference sampling: the official code's scores and choice, and the order of what is kept."""

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data.text import difference_sampling
from kdjax.data.text.difference_sampling import difference_scores, keep_largest
from kdjax.errors import KdjaxError

STORED = np.load(Path(__file__).parents[3] / "third_party" / "reference" / "miniplm.npz")


def test_the_scores_of_the_official_code():
  scores = difference_scores(-STORED["teacher_nll"], -STORED["reference_nll"])
  np.testing.assert_allclose(scores, STORED["scores"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 0.29, 1.0])  # int(0.29 * 50) is 14
def test_the_choice_of_the_official_code(ratio):
  np.testing.assert_array_equal(
    keep_largest(STORED["scores"], ratio=ratio), STORED[f"kept_{ratio}"]
  )


def test_scores_are_per_token_and_larger_where_the_teacher_is_better():
  tokens = np.array([4, 8, 4, 4])
  teacher, reference = np.array([-4.0, -8.0, -4.0, -12.0]), np.array([-8.0, -16.0, -4.0, -8.0])
  scores = difference_scores(teacher, reference, tokens)
  np.testing.assert_allclose(scores, [1, 1, 0, -1])
  assert scores.dtype == np.float64


scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scores, st.floats(0, 1))
def test_kept_are_the_largest_in_their_order(scores, ratio):
  scores = np.array(scores)
  kept = keep_largest(scores, ratio=ratio)
  assert len(kept) == int(ratio * len(scores))
  assert (np.diff(kept) > 0).all()
  rest = np.setdiff1d(np.arange(len(scores)), kept)
  if len(kept) and len(rest):
    least = scores[kept].min()
    assert least >= scores[rest].max()
    # Of equal scores, no later one is kept where an earlier one is not.
    assert not (scores[rest] == least).any() or (
      kept[scores[kept] == least].max() < rest[scores[rest] == least].min()
    )


def test_equal_models_keep_the_first():
  same = difference_scores(np.full(7, -3.0), np.full(7, -3.0), np.arange(1, 8))
  np.testing.assert_array_equal(same, 0)
  np.testing.assert_array_equal(keep_largest(same, ratio=0.5), [0, 1, 2])


def test_bad_input_is_named():
  two = np.zeros(2)
  with pytest.raises(KdjaxError, match=r"\(2,\).*\(3,\)"):
    difference_scores(two, np.zeros(3))
  with pytest.raises(KdjaxError, match=r"reference_log_probs\[1\] = -inf"):
    difference_scores(two, np.array([0, -np.inf]))
  with pytest.raises(KdjaxError, match=r"tokens\[0\] = 0"):
    difference_scores(two, two, np.array([0, 3]))
  with pytest.raises(KdjaxError, match=r"ratio is 1\.5"):
    keep_largest(two, ratio=1.5)
  with pytest.raises(KdjaxError, match="one finite number"):
    keep_largest(np.array([np.nan]))


def test_examples():
  assert doctest.testmod(difference_sampling).failed == 0
