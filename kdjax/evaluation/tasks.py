"""Task files in BIG-bench's JSON format, and the grading of their options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import KdjaxError
from kdjax.parsing import parse_json

OPTION_SEED = 42  # BIG-bench's permutation of the options that a prompt lists


class Question(NamedTuple):
  """One example: a prompt, its options and the score of each."""

  prompt: str
  options: tuple[str, ...]
  scores: tuple[float, ...]


class Task(NamedTuple):
  name: str
  questions: tuple[Question, ...]


def read_task(path: str | Path) -> Task:
  """Reads the multiple-choice examples of a task file.

  Args:
    path: JSON with `name` and `examples`, each with `input` and `target_scores` (option to number);
      and, where the defaults do not fit, `task_prefix`, `example_input_prefix`,
      `example_output_prefix`, `choice_prefix`, `append_choices_to_input`.

  Returns:
    The task, duplicated examples left out.

  Raises:
    KdjaxError: no such file, no JSON, or examples without options.

  Reference:
    Srivastava et al., "Beyond the Imitation Game", TMLR 2023, https://arxiv.org/abs/2206.04615
  """
  path = Path(path)
  try:
    content = parse_json(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise KdjaxError(f"{path}: {error.strerror}; give a task file in BIG-bench's format") from None
  except ValueError as error:
    raise KdjaxError(f"{path} is not JSON in UTF-8 ({error})") from None
  examples = content.get("examples") if isinstance(content, dict) else None
  if not isinstance(examples, list) or not examples:
    raise KdjaxError(f"{path} has no list 'examples'; it is no task in BIG-bench's format")
  permutation = np.random.default_rng(OPTION_SEED)
  questions, seen = [], set()
  for index, example in enumerate(examples):
    same = json.dumps(example, sort_keys=True)
    if same not in seen:
      questions.append(_question(content, example, f"{path}, example {index}", permutation))
    seen.add(same)
  return Task(str(content.get("name", path.stem)), tuple(questions))


def _question(task: dict[str, Any], example: Any, where: str, permutation) -> Question:
  scores = example.get("target_scores") if isinstance(example, dict) else None
  if not isinstance(scores, dict) or not scores or "input" not in example:
    raise KdjaxError(f"{where} lacks 'input' or 'target_scores'; only options can be graded")
  options = sorted(scores)
  listed = ""
  if task.get("append_choices_to_input", True):
    prefix = task.get("choice_prefix", "\n  choice: ")
    listed = "".join(prefix + options[i] for i in permutation.permutation(len(options)))
  prompt = (
    task.get("task_prefix", "")
    + task.get("example_input_prefix", "\nQ: ")
    + example["input"]
    + listed
    + task.get("example_output_prefix", "\nA: ")
  )
  return Question(prompt, tuple(options), tuple(float(scores[option]) for option in options))


def grade(
  task: Task, log_probs: Callable[[Sequence[tuple[str, str]]], Sequence[float]]
) -> dict[str, float]:
  """Grades a model by the likelihood that it gives to the options.

  Args:
    task: from `read_task`.
    log_probs: of (prompt, continuation) pairs, the summed log-probability of the continuation.

  Returns:
    `multiple_choice_grade`, the mean score of the likeliest options; `brier`, the mean over options
    of the squared distance to the normalised scores; `ece` with ten bins of the likeliest option's
    share; `questions`, their number.
  """
  pairs = [(q.prompt, option) for q in task.questions for option in q.options]
  values = np.asarray(log_probs(pairs), np.float64)
  grades, briers, sure, start = [], [], [], 0
  for question in task.questions:
    own = values[start : start + len(question.options)]
    start += len(question.options)
    share = np.exp(own - own.max())
    share /= share.sum()
    scores = np.asarray(question.scores)
    grades.append(scores[np.argmax(own)])
    wanted = scores / scores.sum() if scores.sum() > 0 else scores
    briers.append(np.mean(np.square(share - wanted)))
    sure.append(share.max())
  return {
    "multiple_choice_grade": float(np.mean(grades)),
    "brier": float(np.mean(briers)),
    "ece": _calibration_error(np.asarray(sure), np.asarray(grades)),
    "questions": float(len(task.questions)),
  }


def _calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = [
    np.sum(place == b) * abs(correct[place == b].mean() - confidence[place == b].mean())
    for b in np.unique(place)
  ]
  return float(np.sum(gaps) / len(confidence))
