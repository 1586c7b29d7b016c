"""Loyalty of probabilities, beside scipy's distance, and of predicted numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance

from kdjax.errors import KdjaxError
from kdjax.evaluation import probability_loyalty, regression_loyalty
from tests.losses.checks import jit, log_softmax64, random_logits


def test_the_numbers_of_the_reference():
  """It names scipy's `jensenshannon`, whose logarithm is natural."""
  rows = [
    ([0.75, 0.2, 0.05], [0.8, 0.1, 0.1]),
    ([1, 0, 0], [0, 1, 0]),
    ([0.3, 0.7, 0], [0.3, 0.7, 0]),
  ]
  wanted = [1 - distance.jensenshannon(*row) for row in rows]
  np.testing.assert_allclose(wanted, [0.885345, 0.167445, 1.0], atol=1e-6)
  with np.errstate(divide="ignore"):
    teacher, student = np.log(np.array(rows, np.float32)).swapaxes(0, 1)
  loyalty = jit(
    lambda s, t: [
      probability_loyalty(s, t, base=np.e),
      probability_loyalty(t, s, base=np.e),
      probability_loyalty(s, t),
    ]
  )
  nats, turned, bits = loyalty(student, teacher)
  np.testing.assert_allclose(nats, wanted, atol=1e-5)
  np.testing.assert_allclose(turned, nats, atol=1e-6)
  np.testing.assert_allclose(bits[1:], [0, 1], atol=1e-6)
  student, teacher = random_logits(0, (3, 5))
  p, q = (np.exp(log_softmax64(z)) for z in (teacher, student))
  for got, base in zip(loyalty(student, teacher)[1:], (np.e, 2), strict=True):
    wanted = [1 - distance.jensenshannon(*row, base=base) for row in zip(p, q, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_correlations_by_hand_with_ties():
  loyalty = regression_loyalty(np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.0, 1.0, 3.0, 4.0]))
  # Deviations (-1.5, -.5, -.5, 2.5) and (-2, -1, 1, 2): 8 / sqrt(9 * 10). Ranks 1, 2.5, 2.5, 4
  # and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5). Differences 1, 1, 1, 1.
  assert loyalty["pearson"] == pytest.approx(8 / np.sqrt(90))
  assert loyalty["spearman"] == pytest.approx(4.5 / np.sqrt(22.5))
  assert loyalty["mae"] == 1.0


numbers = st.lists(st.integers(-50, 50), min_size=6, max_size=6).map(np.array)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(numbers, numbers, st.floats(0.1, 100), st.floats(-100, 100))
def test_properties(a, b, scale, shift):
  loyalty = regression_loyalty(a, b)
  assert regression_loyalty(b, a) == pytest.approx(loyalty)
  if np.ptp(a) and np.ptp(b):
    assert loyalty["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    assert regression_loyalty(a, a) == pytest.approx({"pearson": 1, "spearman": 1, "mae": 0})
  moved = regression_loyalty(a * scale + shift, b)
  assert moved["pearson"] == pytest.approx(loyalty["pearson"], abs=1e-9)
  assert moved["spearman"] == pytest.approx(loyalty["spearman"])
  bent = regression_loyalty(np.exp(a / 50), b)  # ranks alone see nothing of it
  assert bent["spearman"] == pytest.approx(loyalty["spearman"])
  assert regression_loyalty(a + shift, a)["mae"] == pytest.approx(abs(shift))


def test_rows_that_do_not_count_and_constant_sides():
  where = np.array([True, False, True, True])
  loyalty = regression_loyalty(np.array([1, np.nan, 2, 3]), np.array([6, 0, 4, 2]), where)
  assert loyalty == pytest.approx({"pearson": -1, "spearman": -1, "mae": 8 / 3})
  assert regression_loyalty(np.ones(3), np.arange(3))["pearson"] == 0


def test_bad_input_is_named():
  with pytest.raises(KdjaxError, match="base is 1"):
    probability_loyalty(jnp.zeros(2), jnp.zeros(2), base=1)
  with pytest.raises(KdjaxError, match=r"\(2,\).*\(3,\)"):
    regression_loyalty(np.zeros(2), np.zeros(3))
  with pytest.raises(KdjaxError, match=r"1 row\(s\) count"):
    regression_loyalty(np.zeros(2), np.zeros(2), np.array([True, False]))
  with pytest.raises(KdjaxError, match="finite numbers"):
    regression_loyalty(np.array([0, np.inf]), np.zeros(2))
