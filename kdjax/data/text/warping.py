"""Two tokenizations of one text, aligned by dynamic time warping over the spelling of their tokens.

Where `kdjax.data.text.alignment` asks at which byte each token ends, this asks what it is written
like, and so also aligns texts that are not quite the same.

Reference:
  Fu et al., "Specializing Smaller Language Models towards Multi-Step Reasoning", ICML 2023,
  https://arxiv.org/abs/2301.12726 (FranxYao/FlanT5-CoT-Specialization, src/utils.py and
  notebooks/dev_align_codex_to_flan_t5_dtw.ipynb).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

NONE = -1
# How vocabularies write a space in front of a word.
MARKS = str.maketrans({"\u0120": " ", "\u2581": " "})


def spelled(token: str) -> str:
  """A token of a vocabulary with spaces for its marks of word beginnings."""
  return token.translate(MARKS)


@functools.lru_cache(maxsize=1 << 18)
def edit_distance(first: str, second: str) -> int:
  """The least number of insertions, deletions and substitutions from one string to the other."""
  row = list(range(len(second) + 1))
  for i, a in enumerate(first, 1):
    before, row[0] = row[0], i
    for j, b in enumerate(second, 1):
      before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
  return row[-1]


def warp(teacher: Sequence[str], student: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
  """The cheapest monotone path that pairs every token of each side with one of the other's.

  A pair costs the edit distance of its tokens without spaces. Of equally cheap paths it is the one
  that, read from the end, goes on both sides where it can, else on the teacher's.

  Args:
    teacher: N tokens, at least one, `spelled`.
    student: M tokens, at least one, `spelled`.

  Returns:
    (pairs of places (teacher's, student's), both ascending, from (0, 0) to (N - 1, M - 1); cost).
  """
  own, theirs = ([token.replace(" ", "") for token in side] for side in (student, teacher))
  costs = np.array([[edit_distance(a, b) for b in own] for a in theirs], np.int64)
  total = np.empty_like(costs)
  total[0] = np.cumsum(costs[0])
  for i in range(1, len(costs)):
    above = total[i - 1].copy()
    above[1:] = np.minimum(above[1:], total[i - 1, :-1])
    # total[i, j] = costs[i, j] + min(above[j], total[i, j - 1]), for all j at once.
    upto = np.cumsum(costs[i])
    total[i] = upto + np.minimum.accumulate(above - (upto - costs[i]))
  i, j = len(theirs) - 1, len(own) - 1
  path = [(i, j)]
  while i or j:
    moves = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
    i, j = min((m for m in moves if min(m) >= 0), key=lambda m: total[m])
    path.append((i, j))
  return path[::-1], int(total[-1, -1])


def one_to_one(teacher: Sequence[str], student: Sequence[str]) -> np.ndarray:
  """For each of the student's tokens the teacher's place that says the same, or `NONE`.

  There is one where the student's token is paired with a single place of the teacher's and both are
  spelled alike, spaces included: then what the teacher says there is about the same step.

  Args:
    teacher: as in `warp`.
    student: as in `warp`.

  Returns:
    int64 [M].
  """
  path, _ = warp(teacher, student)
  partners: list[list[int]] = [[] for _ in student]
  for theirs, own in path:
    partners[own].append(theirs)
  return np.array(
    [
      own[0] if len(own) == 1 and teacher[own[0]] == token else NONE
      for own, token in zip(partners, student, strict=True)
    ],
    np.int64,
  )
