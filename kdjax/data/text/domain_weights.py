"""DDK: more of the domains in which the student is further behind its teacher.

Plain float64 numbers, worked out a few times in a run from perplexities that are the same on every
host; the weights are what a mixture's `set_weights` takes.

Reference:
  Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", NeurIPS 2024,
  https://arxiv.org/abs/2407.16154
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kdjax.errors import KdjaxError

__all__ = ["ddk", "fixed"]  # what a config may name

Perplexities = Mapping[str, float]


class DomainState(NamedTuple):
  """What is carried from one update to the next, and checkpointed.

  Attributes:
    weights: domain to its share of the rows to come; they sum to 1.
    teacher: domain to the teacher's perplexity, worked out once.
  """

  weights: dict[str, float]
  teacher: dict[str, float]


class DomainWeights(NamedTuple):
  """A rule for the weights of domains.

  Attributes:
    init: `init(student, teacher) -> DomainState`, from perplexities by domain on held-out text.
    update: `update(state, student) -> DomainState`, after every so many steps.
  """

  init: Callable[[Perplexities, Perplexities], DomainState]
  update: Callable[[DomainState, Perplexities], DomainState]


def domain_discrepancy(student: Perplexities, teacher: Perplexities) -> dict[str, float]:
  """The domain discrepancy factor: softmax over domains of student's / teacher's perplexity.

  Args:
    student: perplexity by domain, above 0.
    teacher: the same of the teacher.

  Returns:
    Domain to its share, in the order of `teacher`; they sum to 1.

  Raises:
    KdjaxError: domains that differ, or a perplexity that is not finite and above 0.

  Example:
    >>> student = {"web": 20.0, "code": 8.0}
    >>> shares = domain_discrepancy(student, teacher={"web": 20.0, "code": 4.0})
    >>> print({name: round(share, 3) for name, share in shares.items()})  # of ratios 1 and 2
    {'web': 0.269, 'code': 0.731}
  """
  return _shares(teacher, _ratios(student, teacher))


def fixed() -> None:
  """No rule: the weights stay what they were."""


def ddk(*, smoothing: float = 0.5) -> DomainWeights:
  """The discrepancy factor, compounded from update to update, with a floor for every domain.

  r' = smoothing psi / sum(psi) + (1 - smoothing) / N, with psi = r exp(ratio) and r the weights
  before. The paper draws the rows before the first update from the whole corpus as it is, and
  updates every 1,000 steps.

  Args:
    smoothing: alpha, in [0, 1]; no weight falls below (1 - alpha) / N. 1 is without a floor, 0
      leaves all domains equal.

  Returns:
    The pair (init, update); `init` makes the discrepancy factor.

  Raises:
    KdjaxError: a value out of range; from the pair, as in `domain_discrepancy`.
  """
  if not 0 <= smoothing <= 1:
    raise KdjaxError(f"ddk: smoothing = {smoothing} must lie in [0, 1]")

  def init(student: Perplexities, teacher: Perplexities) -> DomainState:
    weights = domain_discrepancy(student, teacher)
    return DomainState(weights, {name: float(value) for name, value in teacher.items()})

  def update(state: DomainState, student: Perplexities) -> DomainState:
    ratios = _ratios(student, state.teacher)
    before = np.array([state.weights[name] for name in state.teacher], np.float64)
    with np.errstate(divide="ignore"):  # without a floor a weight may have become 0
      compounded = _shares(state.teacher, np.log(before) + ratios)
    floor = (1 - smoothing) / len(compounded)
    weights = {name: smoothing * share + floor for name, share in compounded.items()}
    return state._replace(weights=weights)

  return DomainWeights(init, update)


def _ratios(student: Perplexities, teacher: Perplexities) -> np.ndarray:
  if not teacher or set(student) != set(teacher):
    raise KdjaxError(
      f"the student has perplexities of the domains {sorted(student)}, the teacher of"
      f" {sorted(teacher)}; both of each domain wanted"
    )
  for side, values in (("student", student), ("teacher", teacher)):
    for name, value in values.items():
      if not 0 < value < math.inf:
        raise KdjaxError(
          f"the {side}'s perplexity of {name} is {value}; a finite number above 0 wanted"
        )
  return np.array([student[name] / teacher[name] for name in teacher], np.float64)


def _shares(names: Perplexities, scores: np.ndarray) -> dict[str, float]:
  """The softmax of the scores. An untrained student's ratios alone would overflow."""
  share = np.exp(scores - scores.max())
  return dict(zip(names, (share / share.sum()).tolist(), strict=True))
