"""Which domain each row of training comes from: counted out, so that shares hold from the start.

The n-th row is given by Tijdeman's rule: after any number of rows, each domain has its share of
them to within one. Shares are rounded to multiples of 2^-20, after as many rows the rule repeats.

Reference:
  R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980),
  https://doi.org/10.1016/0012-365X(80)90269-1.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import KdjaxError

PERIOD = 1 << 20
_CHUNK = 4096

Weights = tuple[float, ...]


class Mixture(NamedTuple):
  """How a training stream shares its rows among domains.

  Attributes:
    domains: names.
    rows: of each domain in the source, where they lie in this order.
    weights: of each domain, not all 0; 0 reads none of it.
  """

  domains: tuple[str, ...]
  rows: tuple[int, ...]
  weights: Weights


class Change(NamedTuple):
  """From the global row `start` on, `weights` hold."""

  start: int
  weights: Weights


def checked_weights(weights: Any, domains: tuple[str, ...]) -> Weights:
  """Weights in the order of the domains.

  Raises:
    KdjaxError: a name that is no domain or is missing, a negative or infinite weight, or all 0.
  """
  if not isinstance(weights, Mapping) or set(weights) != set(domains):
    got = sorted(map(str, weights)) if isinstance(weights, Mapping) else weights
    raise KdjaxError(
      f"weights must name each domain: {', '.join(domains)}; got {got}. Give weight 0 to a domain"
      " that is not to be read"
    )
  for name, weight in weights.items():
    fits = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not fits or not 0 <= weight < math.inf:  # False for nan too
      raise KdjaxError(f"weights.{name} = {weight!r} must be a number of at least 0")
  out = tuple(float(weights[name]) for name in domains)
  if not sum(out):
    raise KdjaxError(f"weights = {dict(weights)} are all 0; one domain at least must be read")
  return out


def assign(changes: tuple[Change, ...], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
  """Domain, and number within it, of the global rows start .. stop - 1.

  Numbers count on over changes of the weights: no row of a domain is left out or read twice.

  Args:
    changes: in order, the first at row 0.
    start: the first row.
    stop: one past the last.

  Returns:
    Two int64 arrays.
  """
  before = np.zeros(len(changes[0].weights), np.int64)
  domains, numbers = [], []
  for index, change in enumerate(changes):
    end = changes[index + 1].start if index + 1 < len(changes) else stop
    turns = _turns(_shares(change.weights))
    first, last = max(start, change.start) - change.start, min(stop, end) - change.start
    if first < last:
      own, nth = turns.read(first, last)
      domains.append(own)
      numbers.append(nth + before[own])
    if end >= stop:
      break
    before = before + turns.counts(end - change.start)
  return np.concatenate(domains), np.concatenate(numbers)


def _shares(weights: Weights) -> tuple[int, ...]:
  """Whole numbers that sum to PERIOD, none of them 0 where the weight is not."""
  given = np.array(weights, np.float64)
  exact = given / given.max()  # sums of huge or tiny numbers stay finite
  exact = exact / exact.sum() * PERIOD
  shares = np.where(given > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
  order = np.argsort(shares - exact, kind="stable")  # largest remainders first
  missing = PERIOD - int(shares.sum())
  if missing >= 0:
    shares[order[:missing]] += 1
  else:
    shares[np.argmax(shares)] += missing
  return tuple(shares.tolist())


class _Turns:
  """The endless sequence of domains for fixed shares, worked out as far as it is asked for."""

  def __init__(self, shares: tuple[int, ...]):
    self._shares = shares
    self._active = [(domain, share) for domain, share in enumerate(shares) if share]
    self._chunks: list[np.ndarray] = []
    self._before = [np.zeros(len(shares), np.int64)]  # rows of each domain before each chunk
    self._lock = threading.Lock()

  def counts(self, n: int) -> np.ndarray:
    """How many of the first n rows each domain has, int64 [K]."""
    periods, rest = divmod(n, PERIOD)
    chunk, inside = divmod(rest, _CHUNK)
    part = np.bincount(self._chunk(chunk)[:inside], minlength=len(self._shares))
    return np.array(self._shares, np.int64) * periods + self._before[chunk] + part

  def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Domain, and number within it, of rows start .. stop - 1."""
    place = np.arange(start, stop) % PERIOD
    domains = np.empty(len(place), np.int64)
    for chunk in np.unique(place // _CHUNK):
      own = place // _CHUNK == chunk
      domains[own] = self._chunk(int(chunk))[place[own] % _CHUNK]
    numbers, before = np.empty(len(place), np.int64), self.counts(start)
    for domain in np.unique(domains):
      own = domains == domain
      numbers[own] = before[domain] + np.arange(own.sum())
    return domains, numbers

  def _chunk(self, wanted: int) -> np.ndarray:
    with self._lock:
      while len(self._chunks) <= wanted:
        self._extend()
    return self._chunks[wanted]

  def _extend(self) -> None:
    given = self._before[-1].tolist()
    out = np.empty(_CHUNK, np.int16)
    row = len(self._chunks) * _CHUNK
    # Only domains whose claim is at least 1 / (2K - 2) of a row may have it; of these, the one that
    # must have it soonest. In units of 1 / (2K - 2) / PERIOD all claims are whole.
    unit = max(2 * len(self._active) - 2, 1)
    for place in range(_CHUNK):
      row += 1
      best, soonest = -1, math.inf
      for domain, share in self._active:
        claim = (row * share - PERIOD * given[domain]) * unit
        if claim >= PERIOD and (due := (PERIOD * (unit - 1) - claim) / share) < soonest:
          best, soonest = domain, due
      given[best] += 1
      out[place] = best
    self._chunks.append(out)
    self._before.append(np.array(given, np.int64))


@functools.lru_cache(maxsize=64)
def _turns(shares: tuple[int, ...]) -> _Turns:
  return _Turns(shares)
