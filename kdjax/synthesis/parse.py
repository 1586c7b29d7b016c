"""From what a teacher wrote to its reasoning and its label, and back to one canonical form."""

from __future__ import annotations

import re
from typing import NamedTuple

from kdjax.synthesis.templates import AnswerRule

_AROUND = " \t\r\n*\"'`."  # what is not part of a short answer at its ends
_MARKUP = re.compile(r"\A\s+|[\s*#]+\Z")  # space around reasoning, and what made a marker bold


class Answer(NamedTuple):
  """A parsed answer: `reasoning`, perhaps "", and `label`, never ""."""

  reasoning: str
  label: str


def parse(text: str, rule: AnswerRule) -> Answer | None:
  """The answer in a text; None where the rule finds none.

  Args:
    text: what a teacher wrote.
    rule: where the answer stands.
  """
  reasoning, label = "", text
  if rule.marker:
    at = _last(text, rule.marker)
    if at < 0:
      return None
    reasoning, label = text[:at], text[at + len(rule.marker) :]
  if rule.whole:
    label = label.strip()
  else:
    label = label.strip(_AROUND).partition("\n")[0].strip(_AROUND)
  if rule.labels:
    label = next((own for own in rule.labels if own.lower() == label.lower()), "")
  reasoning = _MARKUP.sub("", reasoning)
  return Answer(reasoning, label) if label else None


def canonical(answer: Answer, rule: AnswerRule) -> str:
  """An answer written out: parsing it by the same rule gives the same answer."""
  label = f"{rule.marker} {answer.label}" if rule.marker else answer.label
  return f"{answer.reasoning}\n{label}" if answer.reasoning else label


def target(answer: Answer, *, reasoning: bool, marker: str) -> str:
  """What a student learns to write.

  Args:
    answer: the teacher's.
    reasoning: with the reasoning before the label, or the label alone.
    marker: stands before the label, so that it can be found again; "" for none.
  """
  label = f"{marker}{answer.label}"
  return f"{answer.reasoning}\n{label}" if reasoning and answer.reasoning else label


def _last(text: str, marker: str) -> int:
  """Where the last marker begins, in any case; -1 where there is none.

  Compared piece by piece: lower() may change the length of a text.
  """
  size, wanted = len(marker), marker.lower()
  places = range(len(text) - size, -1, -1)
  return next((at for at in places if text[at : at + size].lower() == wanted), -1)
