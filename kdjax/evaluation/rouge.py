"""ROUGE-L: how much of a reference's wording a text keeps, in order."""

from __future__ import annotations

import re

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(text: str, reference: str) -> float:
  """The F-measure of the longest common subsequence of words.

  Words are runs of letters a-z and digits, lower-cased, without stemming, as the `rouge_score`
  package takes them by default.

  Args:
    text: what was written.
    reference: what was wanted.

  Returns:
    In [0, 1]; 0 where either has no words.

  Example:
    >>> round(rouge_l("the cat sat", "The cat was on the mat"), 4)
    0.4444

  Reference:
    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004,
    https://aclanthology.org/W04-1013
  """
  own, wanted = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
  if not own or not wanted:
    return 0.0
  common = _common_subsequence(own, wanted)
  precision, recall = common / len(own), common / len(wanted)
  return 0.0 if common == 0 else 2 * precision * recall / (precision + recall)


def _common_subsequence(a: list[str], b: list[str]) -> int:
  before = [0] * (len(b) + 1)
  for x in a:
    row = [0]
    for j, y in enumerate(b):
      row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    before = row
  return before[-1]
