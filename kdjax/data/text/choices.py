"""Which of the training rows are learnt from, as a config says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError

__all__ = ["active", "difference", "everything", "random"]  # what a config may name


class Choice(NamedTuple):
  """A share of the rows.

  Attributes:
    ratio: in (0, 1].
    model: the reference model that rows are compared by; None for rows taken at random.
    train: what differs from the config in the run that trains it.
  """

  ratio: float
  model: Mapping[str, Any] | None = None
  train: Mapping[str, Any] | None = None


STRATEGIES = ("robust", "margin", "entropy", "uniform")


class Queries(NamedTuple):
  """Images without labels that a teacher is asked about.

  Attributes:
    strategy: a name of `STRATEGIES`.
    rounds: how often a student says what to ask next.
    budget: images asked about in each round.
  """

  strategy: str
  rounds: int
  budget: int


def active(*, strategy: str = "robust", rounds: int = 3, budget: int = 40) -> Queries:
  """The labelled images, and those that the teacher is asked about, some in each round.

  Args:
    strategy: "robust" draws by `kdjax.data.robust_sampling` for a teacher that is sometimes wrong;
      "margin" takes the images whose two likeliest classes are closest, "entropy" those with the
      largest; "uniform" any.
    rounds: in each a student is trained on what is there, and is asked about the rest.
    budget: images asked about in a round.

  Reference:
    Baykal et al., "Robust Active Distillation", ICLR 2023, https://arxiv.org/abs/2210.01213
  """
  if strategy not in STRATEGIES:
    raise KdjaxError(f"strategy = {strategy!r} must be one of {STRATEGIES}")
  if rounds < 1 or budget < 1:
    raise KdjaxError(f"rounds = {rounds} and budget = {budget} must be at least 1")
  return Queries(strategy, rounds, budget)


def everything() -> None:
  """All rows."""


def random(*, ratio: float = 0.5) -> Choice:
  """int(ratio N) rows, drawn by `config.data.seed`."""
  return _checked(Choice(ratio))


def difference(*, model: Mapping, train: Mapping, ratio: float = 0.5) -> Choice:
  """MiniPLM: the int(ratio N) rows that the teacher knows better than a small reference does.

  Args:
    model: the reference, a language model in the student's tokens.
    train: what differs from the config in the run that trains it, on the validation rows.
    ratio: alpha, 0.5 in the paper.

  Reference:
    See `kdjax.data.text.difference_sampling`.
  """
  return _checked(Choice(ratio, model, train))


def _checked(choice: Choice) -> Choice:
  if not 0 < choice.ratio <= 1:
    raise KdjaxError(f"ratio = {choice.ratio} must lie in (0, 1]")
  return choice
