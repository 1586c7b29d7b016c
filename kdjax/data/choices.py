"""Which of the training rows are learnt from, as a config says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError
from kdjax.resolve import hint

__all__ = ["difference", "everything", "queries", "random"]  # what a config may name


class Choice(NamedTuple):
  """A share of the rows of text.

  Attributes:
    ratio: in (0, 1].
    model: the reference model that rows are compared by; None for rows taken at random.
    train: what differs from the config in the run that trains it.
  """

  ratio: float
  model: Mapping[str, Any] | None = None
  train: Mapping[str, Any] | None = None


class Queries(NamedTuple):
  """Images without a label that a teacher is asked about, beside those that have one.

  Attributes:
    by: one of `BY`.
    budget: how many are asked about in this run, more than in the runs before.
  """

  by: str
  budget: int


BY = ("robust", "margin", "entropy", "uniform")


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


def queries(*, by: str = "robust", budget: int) -> Queries:
  """The labelled images, and those that the teacher is asked about: by this stage and those before.

  Args:
    by: "robust" is the game of Robust Active Distillation; "margin" and "entropy" take those of
      which the student of the stage before is least sure; "uniform" takes any.
    budget: how many; 0 in a first stage, which learns from labels alone.

  Reference:
    See `kdjax.data.robust_queries`.
  """
  if by not in BY:
    raise KdjaxError(f"by = {by!r} does not exist{hint(by, BY)}")
  if budget < 0:
    raise KdjaxError(f"budget = {budget} must be at least 0")
  return Queries(by, budget)


def _checked(choice: Choice) -> Choice:
  if not 0 < choice.ratio <= 1:
    raise KdjaxError(f"ratio = {choice.ratio} must lie in (0, 1]")
  return choice
