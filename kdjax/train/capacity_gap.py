"""A grid of students and teachers, and the law of the capacity gap that it gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.errors import KdjaxError, writing
from kdjax.laws import Run, choose_teacher, fit_capacity_gap
from kdjax.train.build import build_model, teacher_side
from kdjax.train.checkpoint import writable
from kdjax.train.compare import train_seeds
from kdjax.train.config import Config, check_config, merge
from kdjax.train.job import dry_run, prepare_teacher
from kdjax.train.stage import Stop
from kdjax.train.streams import load_data

FIELD = "config.capacity_gap"


def run_grid(
  config: Config, workdir: Path, *, seeds: int = 1, stop: Stop = lambda: False
) -> dict[str, Any]:
  """Distils every student of `config.capacity_gap` from every teacher of it, and fits the law.

  Its `students` and `teachers` are lists of what differs from `config.student` and from
  `config.teacher.model`. Each teacher is trained once and serves all students. The law is fitted to
  all students; and, to see what it predicts, to all but the largest, whose teacher is then chosen
  by it and compared with those that were tried.

  Args:
    config: a plain mapping; the score is its `eval.best_metric`.
    workdir: everything is written here; a second call goes on where the first stopped.
    seeds: of each pair, the first is `config.seed`.
    stop: see `run_job`.

  Returns:
    What `capacity_gap.json` holds: sizes in parameters, `runs` (one for each seed), `law`,
    `prediction` and `table`.

  Raises:
    KdjaxError: see `run_job`; fewer than two students or teachers.
    Interrupted: see `run_job`.
  """
  check_config(config)
  writable(workdir)
  students, teachers = (_variants(config, side) for side in ("students", "teachers"))
  sizes = {
    side: [_size(each, side, place) for place, each in enumerate(every)]
    for side, every in (("students", students), ("teachers", teachers))
  }
  dry_run(students[0])
  metric, higher = config["eval"]["best_metric"], config["eval"]["higher_is_better"]
  numbers = [config["seed"] + i for i in range(seeds)]
  runs = []
  for place, each in enumerate(teachers):
    folder = workdir / f"teacher{place}"
    teacher, *_ = prepare_teacher(each, folder, stop=stop)
    for index, student in enumerate(students):
      pair = merge(student, {"teacher": {"model": each["teacher"]["model"]}})
      evaluations = train_seeds(pair, folder / f"student{index}", teacher, numbers, stop)
      sides = sizes["students"][index], sizes["teachers"][place]
      runs += [Run(*sides, own[metric]) for own in evaluations]
  law = fit_capacity_gap(runs, higher_is_better=higher)
  result = {
    "metric": metric,
    "higher_is_better": higher,
    "runs": [run._asdict() for run in runs],
    "law": law._asdict() | {"best": [best._asdict() for best in law.best]},
    "prediction": predict(runs, higher_is_better=higher),
  }
  if jax.process_index() == 0:
    with writing(workdir / "capacity_gap.json"):
      result["table"] = table(result)
      (workdir / "capacity_gap.json").write_text(json.dumps(result, indent=1))
  return result


def predict(runs: Sequence[Run], *, higher_is_better: bool) -> dict[str, Any] | None:
  """The largest student's teacher by the law of the smaller ones, beside what that student says.

  Returns:
    `student`; `ratio` of the others' law; `chosen` and `best` teacher and the mean score with each.
    None for fewer than three students, whose law would rest on one.
  """
  sizes = sorted({run.student for run in runs})
  if len(sizes) < 3:
    return None
  law = fit_capacity_gap(
    [run for run in runs if run.student < sizes[-1]], higher_is_better=higher_is_better
  )
  own: dict[float, list[float]] = {}
  for run in runs:
    if run.student == sizes[-1]:
      own.setdefault(run.teacher, []).append(run.score)
  means = {teacher: float(np.mean(scores)) for teacher, scores in own.items()}
  chosen = choose_teacher(sizes[-1], list(means), ratio=law.ratio)
  best = (max if higher_is_better else min)(means, key=means.get)
  return {
    "student": sizes[-1],
    "ratio": law.ratio,
    "chosen": chosen,
    "chosen_score": means[chosen],
    "best": best,
    "best_score": means[best],
  }


def table(result: Mapping[str, Any]) -> str:
  """Mean scores, a student a line, and what was fitted, as text."""
  scores: dict[tuple[float, float], list[float]] = {}
  for run in result["runs"]:
    scores.setdefault((run["student"], run["teacher"]), []).append(run["score"])
  students, teachers = (sorted({pair[side] for pair in scores}) for side in (0, 1))
  lines = [
    f"{result['metric']}; student (rows) and teacher (columns) in parameters",
    f"{'':>12}" + "".join(f"{teacher:>12,}" for teacher in teachers) + f"{'best':>12}",
  ]
  for student, best in zip(students, result["law"]["best"], strict=True):
    row = "".join(f"{np.mean(scores[student, teacher]):>12.4f}" for teacher in teachers)
    end = "" if best["interior"] else " (at an end)"
    lines.append(f"{student:>12,}{row}{best['teacher']:>12,.0f}{end}")
  low, high = result["law"]["interval"]
  lines.append(f"best teacher = {result['law']['ratio']:.2f} x student ({low:.2f} to {high:.2f})")
  if told := result["prediction"]:
    lines.append(
      f"from the smaller students: {told['ratio']:.2f} x {told['student']:,}, nearest"
      f" {told['chosen']:,}, which gives {told['chosen_score']:.4f}; best is {told['best']:,} with"
      f" {told['best_score']:.4f}"
    )
  return "\n".join(lines)


def _size(config: Config, side: str, place: int) -> int:
  """The number of parameters of a config's student or teacher."""
  data, field = load_data(config["data"]).whole, f"{FIELD}.{side}[{place}]"
  if side == "students":
    model = build_model(config["student"], data, field)
  else:
    model = build_model(config["teacher"]["model"], teacher_side(data), field)
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _variants(config: Config, side: str) -> list[Config]:
  """The config with each of the students, or of the teachers."""
  spec = config["capacity_gap"]
  values = spec.get(side, ()) if set(spec) <= {"students", "teachers"} else ()
  fits = isinstance(values, list | tuple) and all(isinstance(v, Mapping) for v in values)
  if not fits or len(values) < 2:
    raise KdjaxError(
      f"{FIELD}.{side} = {values!r} must list two or more mappings of what differs, such as"
      " {'width': 16}"
    )
  wrap = {
    "students": lambda own: {"student": own},
    "teachers": lambda own: {"teacher": {"model": own}},
  }
  return [merge(config, wrap[side](own)) for own in values]
