"""The game of robust active distillation against a linear program, and draws by its answer."""

import doctest
import itertools
import sys

import numpy as np
import pytest
from scipy.optimize import linprog

from kdjax.data.robust_sampling import inclusion_probabilities, margin_gains, systematic_sample
from kdjax.errors import KdjaxError


def worst(q, gains, wrong):
  """What is left when the adversary strikes out the `wrong` points that are worth most."""
  worth = np.sort(q * gains)
  return worth[: len(worth) - wrong].sum()


def best_by_program(gains, wrong, budget):
  """max t, t <= what is left of each choice of the adversary."""
  n, rows = len(gains), []
  for struck in itertools.combinations(range(n), wrong):
    row = -gains.copy()
    row[list(struck)] = 0
    rows.append([*row, 1.0])
  found = linprog(
    [*np.zeros(n), -1.0],
    A_ub=rows,
    b_ub=np.zeros(len(rows)),
    A_eq=[[*np.ones(n), 0.0]],
    b_eq=[budget],
    bounds=[(0, 1)] * n + [(None, None)],
  )
  return -found.fun


@pytest.mark.parametrize("seed", range(6))
def test_the_answer_is_the_linear_programs(seed):
  rng = np.random.default_rng(seed)
  for n, wrong, budget in ((6, 0, 1), (6, 1, 1), (7, 2, 2), (7, 3, 4), (6, 3, 5), (5, 4, 2)):
    gains = rng.uniform(0.05, 1, n)
    q = inclusion_probabilities(gains, wrong=wrong, budget=budget)
    assert q.min() >= 0 and q.max() <= 1 and q.sum() == pytest.approx(budget)
    assert worst(q, gains, wrong) == pytest.approx(best_by_program(gains, wrong, budget), abs=1e-6)


def test_limits_of_the_game():
  gains = np.array([0.2, 0.9, 0.5, 0.7])
  greedy = inclusion_probabilities(gains, wrong=0, budget=2)
  np.testing.assert_allclose(greedy, [0, 1, 0, 1], atol=1e-9)
  equal = inclusion_probabilities(np.full(8, 0.3), wrong=2, budget=1)
  np.testing.assert_allclose(equal, 1 / 8, atol=1e-6)
  # Where nobody is certain to be asked, q g is the same for all who may be, the hardest least.
  q = inclusion_probabilities(gains, wrong=1, budget=1)
  asked = q > 1e-9
  np.testing.assert_allclose((q * gains)[asked], (q * gains)[asked][0], rtol=1e-5)
  assert q[1] < q[3]
  np.testing.assert_allclose(inclusion_probabilities(gains, wrong=9, budget=4), 1, atol=1e-9)


def test_gains_of_worked_values():
  probs = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.6, 0.1, 0.3]])
  np.testing.assert_allclose(margin_gains(probs), [1.0, 1e-6, 0.7])


def test_draws_are_different_points_with_the_probabilities_asked_for():
  q = np.array([1.0, 0.5, 0.25, 0.25, 0.0, 0.7, 0.3])
  drawn = [systematic_sample(q, np.random.default_rng(i)) for i in range(3000)]
  assert all(len(np.unique(own)) == 3 for own in drawn)
  share = np.bincount(np.concatenate(drawn), minlength=7) / len(drawn)
  np.testing.assert_allclose(share, q, atol=0.03)
  assert share[0] == 1 and share[4] == 0


def test_example():
  result = doctest.testmod(sys.modules[systematic_sample.__module__])
  assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"gains": np.zeros(0)}, "one value >= 0 a point is wanted"),
    ({"gains": np.array([1.0, -1.0])}, "one value >= 0 a point is wanted"),
    ({"budget": 4}, r"budget = 4 lie in 1 \.\. 3"),
    ({"wrong": -1}, "wrong = -1 must be at least 0"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  given = {"gains": np.ones(3), "wrong": 1, "budget": 2} | changed
  with pytest.raises(KdjaxError, match=message):
    inclusion_probabilities(**given)
