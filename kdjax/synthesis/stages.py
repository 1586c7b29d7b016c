"""A teacher's answers to training data: how to ask, asking, and what of it is learnt.

Reference: "Knowledge Distillation Using Frontier Open-source LLMs: Generalizability and the Role of
Synthetic Data", 2024, https://arxiv.org/abs/2410.18588 (no code was published).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kdjax.errors import KdjaxError
from kdjax.synthesis.cache import AnswerCache, key_of
from kdjax.synthesis.parse import Answer, parse, target
from kdjax.synthesis.templates import Template
from kdjax.teachers.text import TextDecoding, TextTeacher

Metric = Callable[[Answer | None, str], float]
Pause = Callable[[], None]


class Asked(NamedTuple):
  """One way to ask, and the mean metric of the teacher that is asked so."""

  template: Template
  decoding: TextDecoding
  score: float


class Pairs(NamedTuple):
  """`rows` for a JSONL file, and `dropped`, how many inputs had no answer that could be parsed."""

  rows: list[dict[str, str]]
  dropped: int


def exact_match(answer: Answer | None, gold: str) -> float:
  """1 where the label is the gold one; what cannot be parsed is wrong."""
  return float(answer is not None and answer.label == gold)


def respond(
  teacher: TextTeacher,
  template: Template,
  decoding: TextDecoding,
  inputs: Sequence[str],
  cache: AnswerCache,
  *,
  batch_size: int = 64,
  pause: Pause = lambda: None,
) -> list[str]:
  """The teacher's answers to inputs, of which those in the cache are not asked for again.

  Args:
    teacher: who answers.
    template: how it is asked.
    decoding: how it writes.
    inputs: texts; equal ones are asked once.
    cache: where answers are kept, after each batch.
    batch_size: prompts asked together, at least 1.
    pause: called before each batch; what it raises ends the work, with all answers so far kept.

  Raises:
    KdjaxError: batch_size below 1; a teacher that gives another number of answers.
  """
  if batch_size < 1:
    raise KdjaxError(f"batch_size = {batch_size} must be at least 1")
  keys = [key_of(text, template.id, decoding, teacher.name) for text in inputs]
  wanted = dict(zip(keys, inputs, strict=True))
  missing = [key for key in wanted if key not in cache]
  for batch in _batches(missing, batch_size):
    pause()
    answers = teacher.answer([template.prompt(wanted[key]) for key in batch], decoding)
    if len(answers) != len(batch):
      raise KdjaxError(f"{teacher.name} gave {len(answers)} answers to {len(batch)} prompts")
    cache.add(dict(zip(batch, answers, strict=True)))
  return [cache[key] for key in keys]


def search(
  teacher: TextTeacher,
  templates: Sequence[Template],
  decodings: Sequence[TextDecoding],
  items: Sequence[Mapping[str, str]],
  cache: AnswerCache,
  *,
  metric: Metric = exact_match,
  batch_size: int = 64,
  pause: Pause = lambda: None,
) -> list[Asked]:
  """Every template with every decoding, the one with the best metric of the teacher first.

  Args:
    items: of a validation split, each with `input` and `gold`; never those that are tested on.
    metric: `metric(answer or None, gold) -> float`, higher is better.

  Raises:
    KdjaxError: nothing to choose from, or an item without its gold label.
  """
  if not (templates and decodings and items):
    raise KdjaxError("the search needs a template, a decoding and validation items at least")
  if without := [i for i, item in enumerate(items) if "gold" not in item]:
    raise KdjaxError(f"validation item {without[0]} has no field 'gold', which the search needs")
  inputs = [item["input"] for item in items]
  tried = []
  for template, decoding in itertools.product(templates, decodings):
    said = respond(teacher, template, decoding, inputs, cache, batch_size=batch_size, pause=pause)
    values = [
      metric(parse(text, template.rule), item["gold"])
      for text, item in zip(said, items, strict=True)
    ]
    tried.append(Asked(template, decoding, sum(values) / len(values)))
  return sorted(tried, key=lambda each: -each.score)  # of equal ones the first stays first


def pairs_of(
  inputs: Sequence[str], responses: Sequence[str], template: Template, *, marker: str
) -> Pairs:
  """What a student learns: the bare input, and two targets of which a config chooses one.

  A row has `source`, `label` (the marker and the teacher's label) and `target` (its reasoning
  before that). Nothing of the template is in a source.

  Args:
    inputs: of the training split.
    responses: of the teacher, one for each.
    template: that it was asked with.
    marker: see `kdjax.synthesis.parse.target`.
  """
  rows, dropped = [], 0
  for text, response in zip(inputs, responses, strict=True):
    answer = parse(response, template.rule)
    if answer is None:
      dropped += 1
      continue
    targets = {
      "label": target(answer, reasoning=False, marker=marker),
      "target": target(answer, reasoning=True, marker=marker),
    }
    rows.append({"source": text} | targets)
  return Pairs(rows, dropped)


def chats_of(pairs: Pairs, field: str) -> list[dict[str, list[dict[str, str]]]]:
  """The pairs as chats of a user's message and an answer, for `kind: "chat"` of `config.data`."""
  return [
    {
      "messages": [
        {"role": "user", "content": row["source"]},
        {"role": "assistant", "content": row[field]},
      ]
    }
    for row in pairs.rows
  ]


def _batches(values: Sequence[str], size: int) -> list[Sequence[str]]:
  return [values[at : at + size] for at in range(0, len(values), size)]
