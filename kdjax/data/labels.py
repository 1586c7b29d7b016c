"""Fewer labels, fewer records, held-out records: all stratified and fixed by a seed."""

from __future__ import annotations

import dataclasses

import numpy as np

from kdjax.data.base import UNLABELLED, Example, Source, unstack
from kdjax.errors import KdjaxError


@dataclasses.dataclass(frozen=True)
class View:
  """Chosen records of another source, with labels of their own; `index` stays the source's.

  Attributes:
    source: what is looked at.
    positions: which of its records, int [N].
    labels: int32 [N].
  """

  source: Source
  positions: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.positions)

  def __getitem__(self, position: int) -> Example:
    return self.source[self.positions[position]] | {"label": self.labels[position]}

  def read(self, positions: np.ndarray) -> Example:
    return self.source.read(self.positions[positions]) | {"label": self.labels[positions]}

  def as_stored(self, positions: np.ndarray) -> list[Example]:
    """The records before they are cut to one size, where the source does so."""
    wide = getattr(self.source, "as_stored", None) or (lambda own: unstack(self.source.read(own)))
    rows = wide(self.positions[positions])
    return [row | {"label": self.labels[p]} for row, p in zip(rows, positions, strict=True)]


def subset(source: Source, positions: np.ndarray) -> View:
  """The records at `positions`, in that order."""
  positions = np.asarray(positions, np.int64)
  return View(source, positions, source.labels[positions])


def hide_labels(source: Source, fraction: float, seed: int) -> View:
  """All records, of which only a stratified share keeps its label; the others get -1.

  Args:
    source: any.
    fraction: share of labels kept, in (0, 1]; each class keeps at least one.
    seed: which ones.

  Returns:
    A view of the same length.

  Raises:
    KdjaxError: fraction out of range.
  """
  _check("the share of labels kept", fraction, upper_open=False)
  labels = source.labels
  known = np.flatnonzero(labels != UNLABELLED)
  kept = known[_stratified(labels[known], fraction, seed)]
  hidden = np.full_like(labels, UNLABELLED)
  hidden[kept] = labels[kept]
  return View(source, np.arange(len(source)), hidden)


def labelled_only(source: Source) -> View:
  """The records that have a label."""
  return subset(source, np.flatnonzero(source.labels != UNLABELLED))


def split_off(source: Source, fraction: float, seed: int) -> tuple[View, View]:
  """Splits into (rest, held out), both stratified, in the source's order, with nothing in common.

  Args:
    source: any.
    fraction: share held out, in (0, 1).
    seed: which records.

  Returns:
    Two views that together hold every record once.

  Raises:
    KdjaxError: fraction out of range, or so large that nothing is left.
  """
  _check("the share of records held out", fraction, upper_open=True)
  held = _stratified(source.labels, fraction, seed)
  rest = np.setdiff1d(np.arange(len(source)), held)
  if not len(rest):
    raise KdjaxError(
      f"holding out {fraction} of {len(source)} records leaves none to train on; lower the share or"
      " use more records"
    )
  return subset(source, rest), subset(source, held)


def _stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Sorted positions of round(fraction * N) records, shared out by class with at least one each."""
  classes, counts = np.unique(labels, return_counts=True)
  exact = counts * fraction
  quota = np.maximum(np.floor(exact).astype(int), 1)
  # Largest remainders first, so that the total is right and no class is off by more than one.
  missing = round(fraction * len(labels)) - int(quota.sum())
  order = np.argsort(quota - exact, kind="stable")
  quota[order[: max(missing, 0)]] += 1
  chosen = [
    np.random.default_rng((seed, int(label) + 1)).permutation(np.flatnonzero(labels == label))[:n]
    for label, n in zip(classes, quota, strict=True)
  ]
  return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _check(what: str, fraction: float, *, upper_open: bool) -> None:
  fits = 0 < fraction < 1 if upper_open else 0 < fraction <= 1
  if not fits:
    raise KdjaxError(f"{what} is {fraction}; it must lie in (0, 1{')' if upper_open else ']'}")
