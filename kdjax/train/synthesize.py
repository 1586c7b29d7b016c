"""A teacher's answers as a data set: the way to ask is chosen, then all are asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.data.text.documents import records, text_of
from kdjax.errors import KdjaxError, within, writing
from kdjax.synthesis import arithmetic
from kdjax.synthesis.cache import AnswerCache
from kdjax.synthesis.stages import Pairs, chats_of, pairs_of, respond, search
from kdjax.synthesis.templates import Template
from kdjax.teachers import text as teachers
from kdjax.teachers.text import TextDecoding, TextTeacher
from kdjax.train.checkpoint import fingerprint, writable
from kdjax.train.generate import open_writer
from kdjax.train.loop import Interrupted

LOG = logging.getLogger("kdjax")
TEACHERS = ("checkpoint:PATH", "recorded:JSONL", "solver:two_step_arithmetic")
Items = list[dict[str, str]]


class Inputs(NamedTuple):
  """`train`, `validation` and `test` items: `input` of each, and `gold` of the last two."""

  train: Items
  validation: Items
  test: Items


def open_teacher(name: str) -> TextTeacher:
  """A teacher by "KIND:WHAT", see `TEACHERS`.

  Raises:
    KdjaxError: another kind; see `kdjax.teachers.text`.
  """
  kind, _, what = name.partition(":")
  with within("--teacher"):
    if kind == "recorded" and what:
      return teachers.recorded(what)
    if kind == "checkpoint" and what:
      writer = open_writer(what)
      sha256 = fingerprint(writer.variables)[:16]
      own = writer.model, writer.variables, writer.tokenizer, writer.eos_ids
      return teachers.written(sha256, *own)
    if name == TEACHERS[-1]:
      return arithmetic.two_step_arithmetic()
    raise KdjaxError(f"{name!r} is no teacher; give one of {', '.join(TEACHERS)}")


def read_items(path: str, flag: str, *, gold: bool) -> Items:
  """`input` of each line of a JSONL file, and `gold` where asked for; [] without a path."""
  with within(flag):
    fields = ("input", "gold") if gold else ("input",)
    lines = records(path) if path else ()
    return [{name: text_of(line, name, where) for name in fields} for where, line in lines]


def arithmetic_inputs(count: int, held: int) -> Inputs:
  """Two-step questions: `count` to train on, `held` each for validation and testing."""
  every = arithmetic.questions(count + 2 * held)
  return Inputs(every[:count], every[count : count + held], every[count + held :])


def synthesize(
  teacher: TextTeacher,
  inputs: Inputs,
  templates: Sequence[Template],
  decodings: Sequence[TextDecoding],
  out: Path,
  *,
  marker: str = "#",
  batch_size: int = 64,
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Writes OUT/train.jsonl, chats_label.jsonl, chats_target.jsonl, test.jsonl and synthesis.json.

  With more than one way to ask, that with the teacher's best exact match on the validation items is
  taken; the test items are never shown to the teacher, and their targets are the gold labels. Goes
  on where it was stopped: answers are kept in OUT/answers.jsonl.

  Args:
    teacher: who answers.
    inputs: what is asked.
    templates: the ways to ask, at least one.
    decodings: the ways to write, at least one.
    out: a folder.
    marker: before the label in a target.
    batch_size: prompts asked together.
    stop: asked before each batch.

  Returns:
    What synthesis.json holds: the choice, all scores, and how many answers were dropped.

  Raises:
    KdjaxError: nothing to ask, several ways and no validation items, or no answer with a label.
    Interrupted: stopped; the answers so far are kept.
  """
  if not inputs.train:
    raise KdjaxError("there is no input to ask about; give at least one line")
  if len(templates) * len(decodings) > 1 and not inputs.validation:
    raise KdjaxError(
      f"{len(templates)} templates and {len(decodings)} decodings want validation items to choose"
      " by; give --validation, or one of each"
    )
  writable(out)
  cache = AnswerCache(out / "answers.jsonl")

  def pause() -> None:
    if stop():
      raise Interrupted(f"kept {len(cache)} answers in {out}")

  how = {"batch_size": batch_size, "pause": pause}
  template, decoding, tried = templates[0], decodings[0], []
  if inputs.validation:
    tried = search(teacher, templates, decodings, inputs.validation, cache, **how)
    template, decoding = tried[0].template, tried[0].decoding
  asked = [item["input"] for item in inputs.train]
  said = respond(teacher, template, decoding, asked, cache, **how)
  pairs = pairs_of(asked, said, template, marker=marker)
  if not pairs.rows:
    raise KdjaxError(
      f"none of {pairs.dropped} answers has a label behind {template.rule.marker!r}; read"
      f" {out / 'answers.jsonl'} and give another template"
    )
  gold = [f"{marker}{item['gold']}" for item in inputs.test]
  tests = [
    {"source": item["input"], "label": label, "target": label}
    for item, label in zip(inputs.test, gold, strict=True)
  ]
  _write(out, pairs, tests)
  result = {
    "teacher": teacher.name,
    "template": template.id,
    "decoding": decoding._asdict(),
    "validation": [
      {"template": one.template.id, "decoding": one.decoding._asdict(), "exact_match": one.score}
      for one in tried
    ],
    "pairs": len(pairs.rows),
    "dropped": pairs.dropped,
  }
  with writing(out / "synthesis.json"):
    (out / "synthesis.json").write_text(json.dumps(result, indent=2) + "\n")
  LOG.info("%d pairs, %d dropped: %s", len(pairs.rows), pairs.dropped, out)
  return result


def _write(out: Path, pairs: Pairs, tests: Items) -> None:
  files = {
    "train": pairs.rows,
    "test": tests,
    "chats_label": chats_of(pairs, "label"),
    "chats_target": chats_of(pairs, "target"),
  }
  for name, rows in files.items():
    path = out / f"{name}.jsonl"
    with writing(path):
      path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
