"""Answers found in texts, and written so that they are found again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.synthesis import TEMPLATES, Answer, AnswerRule, canonical, parse, target

RULES = [
  *(template.rule for template in TEMPLATES.values()),
  AnswerRule("Answer:", labels=("Yes", "no")),
  AnswerRule(),
]
PIECES = st.sampled_from(
  ["Answer:", "answer: ", "Summary:", "42", ".", "\n", " ", "**", "yes", "NO", "\xa0", "#", "\x1f"]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_its_own_canonical_output_is_parsed_to_the_same(rule, text):
  answer = parse(text, rule)
  if answer is not None:
    assert answer.label and parse(canonical(answer, rule), rule) == answer


@pytest.mark.parametrize(
  ("text", "rule", "wanted"),
  [
    ("3*4=12\nAnswer: 12.", AnswerRule("Answer:"), Answer("3*4=12", "12")),
    ("so\n**answer:** 5\nThat is all.", AnswerRule("Answer:"), Answer("so", "5")),
    ("Answer: 1\nno, Answer: 2", AnswerRule("Answer:"), Answer("Answer: 1\nno,", "2")),
    ("it is 12", AnswerRule("Answer:"), None),
    ("Answer: ", AnswerRule("Answer:"), None),
    ("Answer: YES", AnswerRule("Answer:", labels=("yes", "no")), Answer("", "yes")),
    ("Answer: maybe", AnswerRule("Answer:", labels=("yes", "no")), None),
    ("Summary: a\nSummary: b.\nc.", AnswerRule("Summary:", True), Answer("Summary: a", "b.\nc.")),
    (" hello\nthere ", AnswerRule(whole=True), Answer("", "hello\nthere")),
  ],
)
def test_where_an_answer_stands(text, rule, wanted):
  assert parse(text, rule) == wanted


def test_targets_with_and_without_reasoning():
  answer = Answer("3*4=12", "12")
  assert target(answer, reasoning=True, marker="#") == "3*4=12\n#12"
  assert target(answer, reasoning=False, marker="#") == "#12"
  assert target(Answer("", "12"), reasoning=True, marker="") == "12"
