"""DDK's weights: numbers worked by hand, their bounds, and what changes nothing."""

import doctest
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data.text import domain_weights
from kdjax.data.text.domain_weights import DomainState, ddk, domain_discrepancy
from kdjax.data.text.mixture import checked_weights
from kdjax.errors import KdjaxError

NAMES = ("a", "b", "c", "d")
TEACHER = dict.fromkeys(NAMES, 10.0)
STUDENT = {**TEACHER, "d": 20.0}  # ratios 1, 1, 1, 2


def values(weights):
  return [weights[name] for name in NAMES]


def test_golden_values():
  init, update = ddk()
  # e / (3 e + e^2) = 0.174878 and e^2 / (3 e + e^2) = 0.475367.
  state = init(STUDENT, TEACHER)
  assert values(state.weights) == pytest.approx([0.174878] * 3 + [0.475367], abs=1e-6)
  state = update(state, STUDENT)
  assert values(state.weights) == pytest.approx([0.173128] * 3 + [0.480617], abs=1e-6)
  for _ in range(200):
    state = update(state, STUDENT)
  assert values(state.weights) == pytest.approx([0.171920] * 3 + [0.484241], abs=1e-6)


ratios = st.lists(st.floats(0.5, 4), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(ratios, ratios, st.floats(0, 1))
def test_twin_and_bounds(first, second, smoothing):
  init, update = ddk(smoothing=smoothing)
  student = [dict(zip(NAMES, [10 * r for r in rs], strict=True)) for rs in (first, second)]
  state = update(init(student[0], TEACHER), student[1])
  got = values(state.weights)
  start = [math.exp(r) / math.fsum(map(math.exp, first)) for r in first]
  psi = [r * math.exp(ratio) for r, ratio in zip(start, second, strict=True)]
  wanted = [smoothing * x / math.fsum(psi) + (1 - smoothing) / 4 for x in psi]
  assert got == pytest.approx(wanted, rel=1e-12)
  assert math.fsum(got) == pytest.approx(1, rel=1e-12)
  floor = (1 - smoothing) / 4
  assert all(floor * (1 - 1e-12) <= x <= (smoothing + floor) * (1 + 1e-12) for x in got)
  # Neither the unit of the perplexities nor the order of the domains says anything.
  scaled = [{name: 3 * v for name, v in s.items()} for s in student]
  again = update(init(scaled[0], dict.fromkeys(NAMES, 30.0)), scaled[1])
  assert values(again.weights) == pytest.approx(got, rel=1e-9)
  turned = [dict(reversed(s.items())) for s in student]
  again = update(init(turned[0], dict(reversed(TEACHER.items()))), turned[1])
  assert values(again.weights) == pytest.approx(got, rel=1e-12)


def test_equal_ratios_stay_uniform():
  init, update = ddk()
  student = dict.fromkeys(NAMES, 13.0)
  state = update(init(student, TEACHER), student)
  assert values(state.weights) == pytest.approx([0.25] * 4, rel=1e-12)


def test_an_untrained_student_does_not_overflow():
  init, update = ddk()
  state = init({**STUDENT, "a": 1e6, "b": 1e300}, TEACHER)
  assert values(state.weights) == pytest.approx([0, 1, 0, 0])
  assert values(update(state, STUDENT).weights) == pytest.approx([0.125, 0.625, 0.125, 0.125])


def test_the_weights_are_those_of_a_mixture():
  state = ddk().init(STUDENT, TEACHER)
  assert sum(checked_weights(state.weights, NAMES)) == pytest.approx(1)
  assert all(type(value) is float for value in state.weights.values())


def test_an_update_changes_no_state_in_place():
  init, update = ddk()
  state = init(STUDENT, TEACHER)
  kept = DomainState(dict(state.weights), dict(state.teacher))
  update(state, TEACHER)
  assert state == kept


def test_bad_perplexities_are_named():
  with pytest.raises(KdjaxError, match=r"smoothing = 1\.5"):
    ddk(smoothing=1.5)
  with pytest.raises(KdjaxError, match=r"\['a', 'b', 'c'\].*'d'"):
    domain_discrepancy(dict.fromkeys("abc", 2.0), TEACHER)
  with pytest.raises(KdjaxError, match="student's perplexity of b is nan"):
    ddk().update(ddk().init(STUDENT, TEACHER), {**STUDENT, "b": math.nan})


def test_example():
  assert doctest.testmod(domain_weights).failed == 0
