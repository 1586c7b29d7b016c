"""Documents cut into examples: runs of tokens of which each predicts the next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
  """Examples by number. Example i reads `tokens[start : start + length]` of its domain.

  Its labels are one token further, so the last of them is the first input of the document's next
  example: each token but the first of a document is a label exactly once.

  Attributes:
    start: int64 [E], in the domain's tokens.
    length: int32 [E], inputs, 1 .. sequence length.
    domain: int32 [E].
  """

  start: np.ndarray
  length: np.ndarray
  domain: np.ndarray


def cut(starts: np.ndarray, lengths: np.ndarray, domain: int, sequence_length: int) -> Examples:
  """Examples of documents, in their order.

  Args:
    starts: int64 [N], first token of each document.
    lengths: int64 [N], tokens of each; one of a single token predicts nothing.
    domain: index of the domain.
    sequence_length: the most inputs of an example.
  """
  inputs = np.maximum(lengths - 1, 0)
  counts = -(-inputs // sequence_length)
  document = np.repeat(np.arange(len(starts)), counts)
  nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  begin = nth * sequence_length
  return Examples(
    starts[document] + begin,
    np.minimum(sequence_length, inputs[document] - begin).astype(np.int32),
    np.full(len(document), domain, np.int32),
  )


def joined(parts: list[Examples]) -> Examples:
  return type(parts[0])(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def learnable(examples: Examples, weights: np.ndarray | None) -> np.ndarray:
  """bool [E]: whether any label of an example weighs more than 0.

  Args:
    examples: of one domain.
    weights: of its tokens; None where all are 1.
  """
  if weights is None or not len(examples.start):
    return np.ones(len(examples.start), bool)
  counted = np.concatenate([[0], np.cumsum(weights > 0)])
  first = examples.start + 1
  return counted[first + examples.length] > counted[first]
