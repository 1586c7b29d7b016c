"""Which documents are learnt from and which are held out: by what they say and a seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from kdjax.data.text.examples import Examples, learnable
from kdjax.data.text.tokenized import Tokenized
from kdjax.errors import KdjaxError

LOG = logging.getLogger("kdjax")


class Chosen(NamedTuple):
  """Some documents of one domain.

  Attributes:
    start: int64 [N], the first token of each.
    length: int64 [N], in tokens.
    key: uint64 [N], half of the hash of each.
  """

  start: np.ndarray
  length: np.ndarray
  key: np.ndarray

  def where(self, own: np.ndarray) -> Chosen:
    return Chosen(*(values[own] for values in self))


def distinct_documents(texts: Mapping[str, Tokenized]) -> list[np.ndarray]:
  """The places of each domain's documents that no document before them equals.

  Documents are equal when their hashes are, 16 bytes each, which is all that is read. Of several,
  the first one of the first domain is kept; the log has how many were left out, and where.

  Args:
    texts: the tokens of each domain, by its name.

  Returns:
    int64 [N], ascending, for each domain.

  Raises:
    KdjaxError: a domain whose documents are all in those before it.
  """
  names = list(texts)
  keys = [np.array(text.keys).view("<u8").reshape(-1, 2) for text in texts.values()]
  begin = np.cumsum([0, *map(len, keys)])
  _, first, same = np.unique(np.concatenate(keys), axis=0, return_index=True, return_inverse=True)
  original = first[same.reshape(-1)]
  home = np.searchsorted(begin, original, side="right") - 1
  kept = []
  for index, name in enumerate(names):
    own = slice(begin[index], begin[index + 1])
    new = original[own] == np.arange(begin[index], begin[index + 1])
    if repeated := int((~new & (home[own] == index)).sum()):
      LOG.info("%s: %d duplicates of other documents are left out", name, repeated)
    for other in np.unique(home[own][home[own] < index]):
      count = int((home[own] == other).sum())
      LOG.info("%s: %d documents that %s has too are left out", name, count, names[other])
    if not new.any():
      raise KdjaxError(
        f"sources.{name}: all of its documents are in the domains before it too"
        f" ({', '.join(names[other] for other in np.unique(home[own]))}), which keep them; leave"
        " the domain out, or put it first"
      )
    kept.append(np.flatnonzero(new))
  return kept


def learnable_documents(
  text: Tokenized, distinct: np.ndarray, limit: int | None, domain: str
) -> Chosen:
  """Those of the distinct documents that have something to learn, in their order.

  Args:
    text: the tokens.
    distinct: their places, from `distinct_documents`.
    limit: only so many tokens of a document are used; None uses all.
    domain: its name, for the log, which has how many were left out.
  """
  offsets = np.array(text.offsets)
  keys = np.array(text.keys).view("<u8").reshape(-1, 2)
  lengths = np.diff(offsets)
  if limit is not None:
    lengths = np.minimum(lengths, limit)
  chosen = Chosen(offsets[:-1], lengths, keys[:, 0]).where(distinct)
  whole = Examples(chosen.start, chosen.length - 1, np.zeros(len(distinct), np.int32))
  kept = learnable(whole, text.weights) & (chosen.length > 1)
  if dropped := int((~kept).sum()):
    LOG.info("%s: %d documents hold nothing to learn and are left out", domain, dropped)
  return chosen.where(kept)


def split(chosen: Chosen, fraction: float, seed: int, *, nth: int = 0) -> tuple[Chosen, Chosen]:
  """Documents to learn from and documents held out, by content and seed alone.

  So a document stays on its side when others come or go. Only where one side would be empty does
  one document change sides; a single one is to learn from.

  Args:
    chosen: one document or more.
    fraction: the share held out, in (0, 1).
    seed: which ones.
    nth: 0, 1, ...; splits of different numbers have nothing to do with each other.
  """
  salt = _scrambled(np.array([seed], np.uint64))
  for _ in range(nth):
    salt = _scrambled(salt + np.uint64(0x9E3779B97F4A7C15))
  drawn = _scrambled(chosen.key ^ salt)
  held = drawn < np.uint64(fraction * 2.0**64)
  if not held.any():
    held[np.argmin(drawn)] = True
  if held.all():
    held[np.argmax(drawn)] = False
  return chosen.where(~held), chosen.where(held)


def _scrambled(values: np.ndarray) -> np.ndarray:
  """The last step of SplitMix64: every bit of the input changes half of the output's."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))
