"""The game of Robust Active Distillation, against a linear program and by its properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from kdjax.data.robust_queries import (
  entropy_gains,
  margin_gains,
  robust_distribution,
  robust_inclusions,
  systematic_sample,
)
from kdjax.errors import KdjaxError

GAINS = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=7).map(np.array)


def by_linear_program(gains, wrong, budget):
  """max v: for each set of `wrong` examples, the others' sum of q g is at least v."""
  n = len(gains)
  rows = []
  for lost in itertools.combinations(range(n), wrong):
    kept = gains.copy()
    kept[list(lost)] = 0
    rows.append(np.append(-kept, 1.0))
  found = linprog(
    np.append(np.zeros(n), -1.0),
    A_ub=np.array(rows),
    b_ub=np.zeros(len(rows)),
    A_eq=np.append(np.ones(n), 0.0)[None],
    b_eq=[budget],
    bounds=[(0, 1)] * n + [(None, None)],
  )
  return -found.fun


def payoff(q, gains, wrong):
  """What is left when the adversary takes the `wrong` largest."""
  return np.sort(q * gains)[: len(q) - wrong].sum()


@settings(max_examples=40, deadline=None)
@given(GAINS, st.integers(0, 3))
def test_one_draw_is_the_linear_program(gains, wrong):
  probs, value = robust_distribution(gains, wrong)
  assert value == pytest.approx(by_linear_program(gains, wrong, 1), abs=1e-6)
  assert payoff(probs, gains, wrong) == pytest.approx(value, abs=1e-9)
  assert probs.sum() == pytest.approx(1) and probs.min() >= 0
  on = probs > 0
  np.testing.assert_allclose((probs * gains)[on], (probs * gains)[on][0], rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(GAINS, st.integers(0, 3), st.integers(1, 5))
def test_a_budget_is_the_linear_program(gains, wrong, budget):
  budget = min(budget, len(gains))
  q, value = robust_inclusions(gains, wrong, budget)
  assert q.sum() == pytest.approx(budget, abs=1e-9) and q.min() >= 0 and q.max() <= 1
  wanted = by_linear_program(gains, wrong, budget)
  assert value == pytest.approx(wanted, abs=1e-6)
  assert payoff(q, gains, wrong) == pytest.approx(wanted, abs=1e-6)


def test_a_teacher_that_is_never_wrong_is_asked_about_the_hardest():
  gains = np.array([0.2, 0.9, 0.5, 0.7])
  np.testing.assert_array_equal(robust_distribution(gains, 0)[0], [0, 1, 0, 0])
  np.testing.assert_allclose(robust_inclusions(gains, 0, 2)[0], [0, 1, 0, 1], atol=1e-9)


def test_equal_gains_are_asked_about_equally():
  probs, value = robust_distribution(np.full(8, 0.5), 3)
  np.testing.assert_allclose(probs, 1 / 8)
  assert value == pytest.approx((8 - 3) * 0.5 / 8)


def test_hard_examples_get_less_than_less_hard_ones():
  gains = np.linspace(1, 0.5, 10)
  probs, _ = robust_distribution(gains, 6)
  on = probs > 0
  assert on.sum() > 6 and (np.diff(probs[on]) > 0).all()
  assert not on[on.sum() :].any()  # those that are left out are the easiest


def test_gains_of_probabilities():
  probs = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]])
  np.testing.assert_allclose(margin_gains(probs), [0.5, 1e-6, 1.0])
  np.testing.assert_allclose(entropy_gains(probs)[[0, 2]], [0.8018186, 1.0549202], rtol=1e-6)


def test_samples_are_different_examples_with_the_probabilities_asked_for():
  rng = np.random.default_rng(0)
  q = np.array([1.0, 0.1, 0.6, 0.3, 0.9, 0.1, 0.0])
  counts = np.zeros(7)
  for _ in range(4000):
    drawn = systematic_sample(q, rng)
    assert len(drawn) == 3 == len(set(drawn))
    counts[drawn] += 1
  np.testing.assert_allclose(counts / 4000, q, atol=0.03)


def test_what_is_no_game_is_told():
  with pytest.raises(KdjaxError, match="at least one must be right"):
    robust_distribution(np.ones(3), 3)
  with pytest.raises(KdjaxError, match="positive"):
    robust_inclusions(np.array([1.0, 0.0]), 0, 1)
  with pytest.raises(KdjaxError, match="budget of 4"):
    robust_inclusions(np.ones(3), 0, 4)
