"""Prompts that a teacher is asked with, and where the answer stands in what it writes."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from kdjax.errors import KdjaxError
from kdjax.teachers.text import Prompt

INPUT = "{input}"


class AnswerRule(NamedTuple):
  """Where the answer stands.

  Attributes:
    marker: the answer follows the last of these, in any case; "" takes the whole text.
    whole: it goes on to the end of the text rather than of its line.
    labels: if given, an answer is one of these, in any case.
  """

  marker: str = ""
  whole: bool = False
  labels: tuple[str, ...] = ()


class Template(NamedTuple):
  """A way to ask for an answer.

  Attributes:
    name: for people.
    system: instructions, "" for none.
    user: the message, with {input} where the input goes.
    rule: where the answer stands.
  """

  name: str
  system: str
  user: str
  rule: AnswerRule = AnswerRule()

  @property
  def id(self) -> str:
    """The name, and a hash of everything else: another wording is another template."""
    return f"{self.name}-{hashlib.sha256(json.dumps(self[1:]).encode()).hexdigest()[:12]}"

  def prompt(self, text: str) -> Prompt:
    """The prompt for one input.

    Raises:
      KdjaxError: a message without {input}.
    """
    if INPUT not in self.user:
      raise KdjaxError(f"template {self.name!r}: its user message must have {INPUT} in it")
    return Prompt(self.system, self.user.replace(INPUT, text))


ANSWER = AnswerRule("Answer:")
_LINE = "Write the result on a line of its own that begins with 'Answer:'."

chain_of_thought = Template(
  "chain_of_thought",
  f"You solve tasks carefully. Show each step on its own line before you conclude. {_LINE}",
  f"Task:\n{INPUT}\n\nWork through it one step at a time.",
  ANSWER,
)
label_only = Template(
  "label_only",
  f"You solve tasks. {_LINE} Write nothing else.",
  f"Task:\n{INPUT}",
  ANSWER,
)
plain = Template("plain", "", INPUT, AnswerRule(whole=True))
chain_of_density = Template(
  "chain_of_density",
  "You summarise texts in a few sentences, and make each draft say more in the same space.",
  f"Text:\n{INPUT}\n\nDraft a short summary. Then, four times over: list up to three entities of"
  " the text that the draft leaves out, and rewrite it at equal length with them in it. Begin every"
  " draft with 'Summary:'; the last one counts.",
  AnswerRule("Summary:", whole=True),
)

TEMPLATES = {
  template.name: template for template in (chain_of_thought, label_only, plain, chain_of_density)
}
