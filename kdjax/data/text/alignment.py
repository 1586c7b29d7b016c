"""Two tokenizations of one text, cut into groups of tokens that spell the same bytes.

Both sides are read as offsets: after how many bytes of the text each token ends. Where a token of
both ends, a group of each closes, and the two say the same. Offsets of tokenizers count characters,
so that several tokens of one character overlap; those are told apart by the bytes that they spell.

Reference:
  GOLD, "Unlocking On-Policy Distillation for Any Model Family",
  https://huggingface.co/spaces/HuggingFaceH4/on-policy-distillation
  (huggingface/trl, trl/experimental/gold).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN = -1


class Groups(NamedTuple):
  """Groups of the tokens of two tokenizations, numbered in their order.

  Attributes:
    student: int64 [N], the group of each token, ascending; over the documents they count on.
    teacher: int64 [M].
    count: how many there are; both sides have each of them.
  """

  student: np.ndarray
  teacher: np.ndarray
  count: int


def byte_ends(
  text: str, offsets: np.ndarray, pieces: Sequence[str], byte_level: bool
) -> np.ndarray:
  """After how many bytes of a text each of its tokens ends.

  What no token covers, as the spaces between words, belongs to the token behind it; at the end of
  the text, to the last one. Tokens that cover nothing end where the one before them does.

  Args:
    text: what was tokenized.
    offsets: int [N, 2], first and last character but one of each token.
    pieces: the tokens themselves.
    byte_level: whether each character of a piece stands for a byte.

  Returns:
    int64 [N], ascending but for `UNKNOWN` where a token ends inside of a character whose bytes the
    pieces do not account for.
  """
  widths = np.array([len(character.encode()) for character in text], np.int64)
  at = np.concatenate([[0], np.cumsum(widths)])
  starts, ends = (at[np.asarray(offsets, np.int64).reshape(-1, 2)[:, side]] for side in (0, 1))
  empty = starts == ends
  reached = np.maximum.accumulate(np.where(empty, 0, ends)) if len(ends) else ends
  out = reached.copy()
  covering = np.flatnonzero(~empty)
  if not len(covering):
    return out
  out[covering[-1] :] = reached[covering[-1] :] = at[-1]
  # Runs of tokens of which each begins before the one in front of it ends.
  inside = starts[covering[1:]] < reached[covering[:-1]]
  edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
  for first, last in edges.reshape(-1, 2):
    run = covering[first : last + 1]
    begin = reached[run[0] - 1] if run[0] else 0
    lengths = [_length(pieces[token], byte_level) for token in run]
    known = None not in lengths and begin + sum(lengths) == reached[run[-1]]
    out[run[:-1]] = begin + np.cumsum(lengths[:-1]) if known else UNKNOWN
  return out


def align(
  student_ends: np.ndarray,
  student_offsets: np.ndarray,
  teacher_ends: np.ndarray,
  teacher_offsets: np.ndarray,
) -> Groups:
  """Groups of tokens that end at the same byte, in each of several documents.

  A group that closes takes the first token of each side that ends there; the last group of a
  document takes all that is left of it. So groups are as short as they can be, each has a token of
  both sides, and together they are the documents.

  Args:
    student_ends: int64 [N], from `byte_ends`, document by document.
    student_offsets: int64 [D + 1], where each document begins; none is empty.
    teacher_ends: int64 [M].
    teacher_offsets: int64 [D + 1].
  """
  sides = (student_ends, student_offsets), (teacher_ends, teacher_offsets)
  longest = np.zeros(len(student_offsets) - 1, np.int64)
  for ends, offsets in sides:
    longest = np.maximum(longest, np.maximum.reduceat(ends, offsets[:-1]))
  base = np.concatenate([[0], np.cumsum(longest + 1)])  # one scale of bytes for all documents
  scales = []
  for ends, offsets in sides:
    scale = np.where(ends == UNKNOWN, UNKNOWN, ends + np.repeat(base[:-1], np.diff(offsets)))
    # The end of a document is one of both sides, whatever their last tokens say.
    scale[offsets[1:] - 1] = base[1:] - 1
    scales.append(scale)
  common = np.intersect1d(*scales)
  common = common[common >= 0]
  groups = []
  for scale, (_, offsets) in zip(scales, sides, strict=True):
    known = scale != UNKNOWN
    _, first = np.unique(scale[known], return_index=True)
    places = np.flatnonzero(known)[first]
    closing = places[np.searchsorted(scale[places], common)]
    # The last token of a document closes its last group, also where one before it ends there too.
    closing[np.searchsorted(common, base[1:] - 1)] = offsets[1:] - 1
    closes = np.zeros(len(scale), np.int64)
    closes[closing] = 1
    groups.append(np.cumsum(closes) - closes)
  return Groups(groups[0], groups[1], len(common))


def _length(piece: str, byte_level: bool) -> int | None:
  """How many bytes a piece spells, where it can be told."""
  if byte_level:
    return len(piece)
  return 1 if _BYTE.fullmatch(piece) else None
