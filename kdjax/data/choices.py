"""Which of the training rows of text are learnt from, as a config says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError

__all__ = ["difference", "everything", "random"]  # what a config may name


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
