"""Rows of packed examples, each at random access."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from kdjax.data.base import UNLABELLED, Example, Span
from kdjax.data.text.mixture import Mixture
from kdjax.data.text.plan import Plan
from kdjax.data.text.tokenized import Tokenized
from kdjax.errors import KdjaxError

KEY_BYTES = 16


class Layout(NamedTuple):
  """The examples of some rows, and the places of their tokens.

  Attributes:
    counts: [R], examples of each row.
    example: [E], their numbers.
    nth: [E], of its row.
    lengths: [E].
    read: [N], places in the tokens of the domain.
    within: [N], places in the example.
    domain: [N].
    place: [N], places in the rows one after another.
    shape: (R, T).
  """

  counts: np.ndarray
  example: np.ndarray
  nth: np.ndarray
  lengths: np.ndarray
  read: np.ndarray
  within: np.ndarray
  domain: np.ndarray
  place: np.ndarray
  shape: tuple[int, int]

  def rows(self, values: np.ndarray, fill: int = 0) -> np.ndarray:
    """[R, T] of one value for each token, and `fill` where there is none."""
    out = np.full(self.shape[0] * self.shape[1], fill, values.dtype)
    out[self.place] = values
    return out.reshape(self.shape)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackedRows:
  """A `Source` of rows of T tokens; T is `sequence_length`.

  A row is a dict: `tokens` int32 [T]; `label` int32 [T], the next token of the same example, -1
  where there is none or it is not to be learnt; `mask` bool [T], label >= 0; `segment_ids` int32
  [T], 1, 2, ... by example and 0 where nothing is; `positions` int32 [T], from 0 in each example;
  `domain` and `index` int32; and with `weighted`, `weight` float32 [T], of the loss on each label.

  Attributes:
    domains: names.
    texts: the tokens of each domain.
    plan: which examples are in which row.
    sequence_length: positions of a row.
    weighted: whether rows have the key `weight`.
    tokenizer_sha256: fingerprint of the tokenizer.
    mixture: in which proportion a training stream reads the domains; None for one epoch of all.
  """

  domains: tuple[str, ...]
  texts: tuple[Tokenized, ...]
  plan: Plan
  sequence_length: int
  weighted: bool
  tokenizer_sha256: str
  mixture: Mixture | None = None

  @property
  def labels(self) -> np.ndarray:
    raise KdjaxError(
      "rows of text have no class to split or hide by; set config.data.label_fraction = 1 and"
      " labelled_only = False"
    )

  def __len__(self) -> int:
    return len(self.plan.domain)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    positions = np.asarray(positions, np.int64)
    layout = self.layout(positions)
    rows = layout.rows
    tokens, labels, weights = self._gather(layout.read, layout.domain)
    labels = rows(labels, UNLABELLED)
    batch = {
      "tokens": rows(tokens),
      "label": labels,
      "mask": labels >= 0,
      "segment_ids": rows(np.repeat(layout.nth + 1, layout.lengths).astype(np.int32)),
      "positions": rows(layout.within.astype(np.int32)),
      "domain": self.plan.domain[positions].astype(np.int32),
      "index": positions.astype(np.int32),
    }
    return batch | {"weight": rows(weights)} if self.weighted else batch

  def layout(self, positions: np.ndarray) -> Layout:
    """Where the examples of some rows lie."""
    first = self.plan.first
    counts = first[positions + 1] - first[positions]
    example, nth = runs(first[positions], counts)
    row = np.repeat(np.arange(len(positions)), counts)
    lengths = self.plan.examples.length[example].astype(np.int64)
    start = before_in_row(lengths, counts)
    read, within = runs(self.plan.examples.start[example], lengths)
    place = np.repeat(row * self.sequence_length + start, lengths) + within
    domain = np.repeat(self.plan.domain[positions][row], lengths)
    shape = (len(positions), self.sequence_length)
    return Layout(counts, example, nth, lengths, read, within, domain, place, shape)

  def take(self, positions: np.ndarray) -> PackedRows:
    """Some of the rows, as a source of their own.

    Args:
      positions: int64, strictly increasing.

    Raises:
      KdjaxError: a mixture that reads a domain of which no row is left.
    """
    plan = self.plan.take(positions)
    if self.mixture is None:
      return dataclasses.replace(self, plan=plan)
    counts = np.bincount(plan.domain, minlength=len(self.domains)).tolist()
    for name, count, weight in zip(self.domains, counts, self.mixture.weights, strict=True):
      if weight and not count:
        raise KdjaxError(f"no row of the domain {name} is left, but its weight is {weight}")
    return dataclasses.replace(self, plan=plan, mixture=self.mixture._replace(rows=tuple(counts)))

  def spans(self, position: int) -> list[Span]:
    """The examples of a row, in order, keyed by a hash of their input tokens."""
    tokens = self.texts[self.plan.domain[position]].tokens
    out, place = [], 0
    for example in range(self.plan.first[position], self.plan.first[position + 1]):
      start, length = self.plan.examples.start[example], int(self.plan.examples.length[example])
      content = tokens[start : start + length].astype("<i4", copy=False).tobytes()
      key = hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
      out.append(Span(key, place, place + length))
      place += length
    return out

  def _gather(
    self, read: np.ndarray, domain: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, labels and loss weights at places of the domains' tokens."""
    tokens, labels = np.empty(len(read), np.int32), np.empty(len(read), np.int32)
    weights = np.ones(len(read), np.float32)
    for index in np.unique(domain):
      text, own = self.texts[index], domain == index
      tokens[own], labels[own] = text.tokens[read[own]], text.tokens[read[own] + 1]
      if text.weights is not None:
        weights[own] = text.weights[read[own] + 1]
    return tokens, np.where(weights > 0, labels, np.int32(UNLABELLED)), weights


def before_in_row(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """The sum of the sizes in front of each example in its row; `counts` says how many a row has."""
  # What is before it in all rows less what is before its row.
  before = np.cumsum(sizes) - sizes
  return before - np.repeat(before[np.cumsum(counts) - counts], counts)


def runs(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers start, start + 1, ... of each run, and their place in the run from 0."""
  within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  return np.repeat(starts, lengths) + within, within
