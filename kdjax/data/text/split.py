"""Which documents are learnt from and which are for testing: by what they say and a seed."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from kdjax.data.text.examples import Examples, learnable
from kdjax.data.text.tokenized import Tokenized

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


def learnable_documents(text: Tokenized, limit: int | None, domain: str) -> Chosen:
  """The documents that have something to learn, without duplicates, in their order.

  Args:
    text: the tokens.
    limit: only so many tokens of a document are used; None uses all.
    domain: its name, for the log, which has how many were left out.
  """
  offsets = np.array(text.offsets)
  keys = np.array(text.keys).view("<u8").reshape(-1, 2)
  distinct = np.sort(np.unique(keys, axis=0, return_index=True)[1])
  if duplicates := len(keys) - len(distinct):
    LOG.info("%s: %d duplicates of other documents are left out", domain, duplicates)
  lengths = np.diff(offsets)
  if limit is not None:
    lengths = np.minimum(lengths, limit)
  chosen = Chosen(offsets[:-1], lengths, keys[:, 0]).where(distinct)
  whole = Examples(chosen.start, chosen.length - 1, np.zeros(len(distinct), np.int32))
  kept = learnable(whole, text.weights) & (chosen.length > 1)
  if dropped := int((~kept).sum()):
    LOG.info("%s: %d documents hold nothing to learn and are left out", domain, dropped)
  return chosen.where(kept)


def split(chosen: Chosen, fraction: float, seed: int) -> tuple[Chosen, Chosen]:
  """Documents for training and for testing, by content and seed alone.

  So a document stays on its side when others come or go. Only where one side would be empty does
  one document change sides; a single one is for training.

  Args:
    chosen: one document or more.
    fraction: the share for testing, in (0, 1).
    seed: which ones.
  """
  drawn = _scrambled(chosen.key ^ _scrambled(np.array([seed], np.uint64)))
  testing = drawn < np.uint64(fraction * 2.0**64)
  if not testing.any():
    testing[np.argmin(drawn)] = True
  if testing.all():
    testing[np.argmax(drawn)] = False
  return chosen.where(~testing), chosen.where(testing)


def _scrambled(values: np.ndarray) -> np.ndarray:
  """The last step of SplitMix64: every bit of the input changes half of the output's."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))
