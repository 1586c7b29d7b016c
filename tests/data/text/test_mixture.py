"""Mixtures: shares hold after any number of rows, and every row of the run can be found alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data.text.mixture import PERIOD, Change, _shares, assign, checked_weights
from kdjax.errors import KdjaxError

WEIGHTS = [
  (1.0,),
  (3.0, 1.0),
  (0.7, 0.2, 0.1),
  (1e-3, 5.0, 0.0, 2.0),
  (math.pi, math.e, 1e30, 1e30),
]


def rows(weights, start, stop):
  return assign((Change(0, weights),), start, stop)


@pytest.mark.parametrize("weights", [*WEIGHTS, (1.0,) * 7, (100.0, *[1.0] * 9)])
def test_each_domain_has_its_share_to_within_one_row_at_any_time(weights):
  domains, numbers = rows(weights, 0, 9000)
  share = np.array(weights) / sum(weights)
  n = np.arange(1, 9001)
  for domain in range(len(weights)):
    counts = np.cumsum(domains == domain)
    # Rounding of the shares adds at most n 2^-20 to Tijdeman's bound of less than 1.
    assert (np.abs(counts - n * share[domain]) < 1 + n / PERIOD).all()
    np.testing.assert_array_equal(numbers[domains == domain], np.arange(counts[-1]))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.integers(0, 5000), st.integers(1, 64))
def test_any_rows_are_found_without_those_before(weights, start, count):
  weights = tuple(weights)
  if not sum(weights):
    return
  whole = rows(weights, 0, start + count)
  part = rows(weights, start, start + count)
  for a, b in zip(whole, part, strict=True):
    np.testing.assert_array_equal(a[start:], b)


def test_what_is_worked_by_hand():
  # Shares 1/2, 1/4, 1/4: a domain waits until it is 1/4 of a row behind; the one that is due
  # soonest has the row. Row 1: claims 1/2, 1/4, 1/4 all reach 1/4; due after (3/4 - claim) / share
  # = 1/2, 2, 2 more rows. Row 2: claims 0, 1/2, 1/2, of which the first comes. Row 3: 1/2, -1/4,
  # 3/4, due after 1/2, -, 0. Row 4: 1, 0, 0.
  np.testing.assert_array_equal(rows((2.0, 1.0, 1.0), 0, 8)[0], [0, 1, 2, 0, 0, 1, 2, 0])


def test_periods_join_without_a_seam():
  weights = (3.0, 1.0)
  before, after = rows(weights, 4, 40), rows(weights, PERIOD + 4, PERIOD + 40)
  np.testing.assert_array_equal(before[0], after[0])
  steps = np.array([PERIOD * 3 // 4, PERIOD // 4])
  np.testing.assert_array_equal(before[1] + steps[before[0]], after[1])


def test_after_a_change_domains_go_on_where_they_were():
  a, b, c = (1.0, 1.0, 2.0), (0.0, 3.0, 1.0), (1.0, 0.0, 0.0)
  changes = (Change(0, a), Change(101, b), Change(230, c))
  domains, numbers = assign(changes, 0, 400)
  for domain in range(3):
    own = numbers[domains == domain]
    np.testing.assert_array_equal(own, np.arange(len(own)))
  assert 0 not in domains[101:230] and set(domains[230:]) == {0}
  assert abs((domains[101:230] == 1).sum() - 129 * 0.75) < 1
  for start, stop in [(0, 7), (95, 110), (101, 102), (229, 300), (50, 400)]:
    part = assign(changes, start, stop)
    np.testing.assert_array_equal(part[0], domains[start:stop])
    np.testing.assert_array_equal(part[1], numbers[start:stop])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=9))
def test_shares_are_whole_and_near(weights):
  if not any(weights):
    return
  shares = np.array(_shares(tuple(weights)))
  assert shares.sum() == PERIOD
  np.testing.assert_array_equal(shares > 0, np.array(weights) > 0)
  exact = [w / max(weights) for w in weights]
  assert np.abs(shares / PERIOD - np.array(exact) / sum(exact)).max() <= len(weights) / PERIOD


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    (None, "must name each domain: a, b; got None"),
    ({"a": 1}, "must name each domain"),
    ({"a": 1, "b": 1, "c": 1}, r"got \['a', 'b', 'c'\]"),
    ({"a": 1, "b": -0.5}, r"weights\.b = -0\.5 must be a number of at least 0"),
    ({"a": math.nan, "b": 1}, r"weights\.a = nan"),
    ({"a": math.inf, "b": 1}, r"weights\.a = inf"),
    ({"a": "1", "b": 1}, r"weights\.a = '1'"),
    ({"a": True, "b": 1}, r"weights\.a = True"),
    ({"a": 0, "b": 0.0}, "all 0; one domain at least"),
  ],
)
def test_weights_that_do_not_fit(weights, message):
  with pytest.raises(KdjaxError, match=message):
    checked_weights(weights, ("a", "b"))
