"""Which examples share a row: decided once, from lengths and a seed alone."""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np

from kdjax.data.text.examples import Examples, joined

WINDOW = 1 << 14  # examples packed together; more fit better, fewer keep long and short mixed


class Plan(NamedTuple):
  """Rows of examples. Row r holds examples `first[r] .. first[r + 1] - 1`, one after another.

  Attributes:
    examples: in the order of the rows.
    first: int64 [R + 1].
    domain: int32 [R], ascending: the rows of a domain lie together.
  """

  examples: Examples
  first: np.ndarray
  domain: np.ndarray

  def take(self, rows: np.ndarray) -> Plan:
    """The plan of some rows, given by their places in ascending order."""
    counts = np.diff(self.first)[rows]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = np.arange(first[-1]) + np.repeat(self.first[rows] - first[:-1], counts)
    return Plan(Examples(*(array[places] for array in self.examples)), first, self.domain[rows])


def plan_packed(
  parts: list[Examples], room: int, seed: int, sizes: list[np.ndarray] | None = None
) -> Plan:
  """Rows filled by best fit: each example goes where it leaves the least room, long ones first.

  Args:
    parts: the examples of each domain.
    room: of a row.
    seed: of the shuffling before windows of examples are packed.
    sizes: the room that each example takes; its length where None.
  """
  sizes = [part.length for part in parts] if sizes is None else sizes
  placed, counts = [], []
  for domain, examples in enumerate(parts):
    order = np.random.default_rng((seed, domain)).permutation(len(examples.start))
    placed.append(np.zeros(0, np.int64))
    counts.append(np.zeros(0, np.int64))
    for begin in range(0, len(order), WINDOW):
      window = order[begin : begin + WINDOW]
      rows, count = _best_fit(sizes[domain][window], room)
      placed[-1] = np.concatenate([placed[-1], window[np.argsort(rows, kind="stable")]])
      counts[-1] = np.concatenate([counts[-1], count])
  return _plan(
    [type(part)(*(array[own] for array in part)) for part, own in zip(parts, placed, strict=True)],
    counts,
  )


def plan_single(parts: list[Examples]) -> Plan:
  """One example a row, in order."""
  return _plan(parts, [np.ones(len(part.start), np.int64) for part in parts])


def plan_concatenated(
  documents: list[tuple[np.ndarray, np.ndarray]], sequence_length: int, seed: int
) -> Plan:
  """Documents in random order, one after another, cut where a row is full.

  Only the last row of a domain has room left.

  Args:
    documents: (starts, lengths) in tokens for each domain.
    sequence_length: positions of a row.
    seed: of the order.
  """
  parts, counts = [], []
  for domain, (starts, lengths) in enumerate(documents):
    order = np.random.default_rng((seed, domain)).permutation(len(starts))
    order = order[lengths[order] > 1]
    ends = np.cumsum(lengths[order] - 1)
    total = int(ends[-1]) if len(ends) else 0
    # An example ends where a document or a row does.
    stops = np.union1d(ends, np.arange(sequence_length, total, sequence_length)).astype(np.int64)
    begins = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
    document = np.searchsorted(ends, begins, side="right")
    within = begins - (ends - (lengths[order] - 1))[document]
    parts.append(
      Examples(
        starts[order][document] + within,
        (stops - begins).astype(np.int32),
        np.full(len(stops), domain, np.int32),
      )
    )
    counts.append(np.bincount(begins // sequence_length, minlength=0))
  return _plan(parts, counts)


def _plan(parts: list[Examples], counts: list[np.ndarray]) -> Plan:
  domain = np.repeat(np.arange(len(parts), dtype=np.int32), [len(count) for count in counts])
  first = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
  return Plan(joined(parts), first, domain)


def _best_fit(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
  """The row of each example, int64 [E], and how many examples each row has."""
  rows = np.empty(len(lengths), np.int64)
  open_rows: dict[int, list[int]] = {}  # by the room they have left
  rooms: list[int] = []  # its keys, sorted
  counts: list[int] = []
  order = np.argsort(-lengths, kind="stable")
  for example, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
    place = bisect.bisect_left(rooms, length)
    if place == len(rooms):
      row, left = len(counts), room - length
      counts.append(0)
    else:
      own = open_rows[rooms[place]]
      row, left = own.pop(), rooms[place] - length
      if not own:
        del open_rows[rooms.pop(place)]
    rows[example] = row
    counts[row] += 1
    if left:
      if left not in open_rows:
        open_rows[left] = []
        bisect.insort(rooms, left)
      open_rows[left].append(row)
  return rows, np.array(counts, np.int64)
