"""Every method against every other: one pair of models, one budget, the same seeds."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.errors import KdjaxError, within, writing
from kdjax.evaluation.statistics import SIGNIFICANT, paired_comparison
from kdjax.resolve import hint
from kdjax.teachers import Teacher
from kdjax.train import plots
from kdjax.train.checkpoint import fingerprint, writable
from kdjax.train.compare import train_seeds
from kdjax.train.config import Config, check_config, identity, merge
from kdjax.train.job import dry_run, prepare_teacher
from kdjax.train.report import ABSENT, HIGHER_IS_BETTER
from kdjax.train.stage import Stop

FIELD = "config.leaderboard"
DONE = "evaluations.json"
LOG = logging.getLogger("kdjax")


def run_leaderboard(
  config: Config, workdir: Path, *, seeds: int, stop: Stop = lambda: False
) -> dict[str, Any]:
  """Trains every method of `config.leaderboard` from the same seeds and ranks them.

  `config.leaderboard` has `methods`, name to overrides of the config, and `reference`, the one that
  the others are compared with. All share one teacher, trained once in WORKDIR/teacher unless it has
  a checkpoint. What differs in a method's overrides beyond its objective is the config's affair.

  Args:
    config: a plain mapping; the score is its `eval.best_metric`.
    workdir: everything is written here; a second call goes on where the first stopped, method by
      method and within a method.
    seeds: of each method; the first is `config.seed`.
    stop: see `run_job`.

  Returns:
    What `leaderboard.json` holds: `evaluations` (method to one mapping of metrics a seed), `rows`
    (see `rank`) and `table`.

  Raises:
    KdjaxError: see `run_job`; anything wrong with one method is told with its name, before any of
      them is trained.
    Interrupted: see `run_job`.
  """
  check_config(config)
  writable(workdir)
  if seeds < 1:
    raise KdjaxError(f"--seeds = {seeds} must be at least 1")
  methods, reference = _methods(config)
  numbers = [config["seed"] + i for i in range(seeds)]
  for name, own in methods.items():
    if not (workdir / name / DONE).is_file():
      with within(f"{FIELD}.methods.{name}"):
        dry_run(own)
      LOG.info("%s: its config is right", name)
  teacher, results, _ = prepare_teacher(config, workdir, stop=stop)
  evaluations = {
    name: _evaluations(own, workdir / name, teacher, numbers, stop) for name, own in methods.items()
  }
  metric, higher = config["eval"]["best_metric"], config["eval"]["higher_is_better"]
  told = {k.removeprefix("teacher/"): v for k, v in evaluations[reference][0].items()}
  told = {k: v for k, v in told.items() if f"teacher/{k}" in evaluations[reference][0]}
  board = {
    "title": config["compare"]["title"],
    "metric": metric,
    "higher_is_better": higher,
    "reference": reference,
    "seeds": numbers,
    "total_steps": config["total_steps"],
    "teacher": results.get("teacher") or told,
    "evaluations": evaluations,
    "rows": rank(evaluations, metric, reference=reference, higher_is_better=higher),
  }
  board["table"] = table(board)
  if jax.process_index() == 0:
    with writing(workdir / "leaderboard.json"):
      (workdir / "leaderboard.json").write_text(json.dumps(board, indent=1))
  return board


def rank(
  evaluations: Mapping[str, Sequence[Mapping[str, float]]],
  metric: str,
  *,
  reference: str,
  higher_is_better: bool,
) -> list[dict[str, Any]]:
  """The methods, best mean first.

  Args:
    evaluations: method to one mapping of metrics a seed, in the same order of seeds.
    metric: to rank by.
    reference: the method that the others are compared with.
    higher_is_better: of the metric.

  Returns:
    One mapping a method: `method`, `mean`, `std`, `difference` to the reference and its `p_value`
    (paired t-test; None where it says nothing), and the numbers of other methods that it is
    `better_than` and `worse_than` with p < 0.05, each pair by itself: of 20 equal methods one is
    expected to differ from another by chance.
  """
  sign = 1 if higher_is_better else -1
  values = {name: [own[metric] for own in each] for name, each in evaluations.items()}
  rows = []
  for name, own in values.items():
    pairs = {other: paired_comparison(values[other], own) for other in values}
    clear = [
      sign * pair["paired_difference"]
      for pair in pairs.values()
      if pair["p_value"] is not None and pair["p_value"] < SIGNIFICANT
    ]
    with_reference = pairs[reference]
    rows.append(
      {
        "method": name,
        "mean": with_reference["mean"]["method"],
        "std": with_reference["std"]["method"],
        "difference": with_reference["paired_difference"],
        "p_value": None if name == reference else with_reference["p_value"],
        "better_than": sum(difference > 0 for difference in clear),
        "worse_than": sum(difference < 0 for difference in clear),
      }
    )
  return sorted(rows, key=lambda row: -sign * row["mean"])


def table(board: Mapping[str, Any]) -> str:
  """A leaderboard as a Markdown table, and what to read from it."""
  metric, reference = board["metric"], board["reference"]
  sample = next(iter(board["evaluations"].values()))[0]
  also = [m for m in HIGHER_IS_BETTER if m in sample and m != metric]
  columns = ["", "method", metric, f"difference to {reference} (p)", "better than", "worse than"]
  lines = [f"| {' | '.join([*columns, *also])} |", "|" + "---|" * (len(columns) + len(also))]
  for place, row in enumerate(board["rows"], 1):
    spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
    p_value = "" if row["p_value"] is None else f" ({row['p_value']:.2g})"
    apart = "" if row["method"] == reference else f"{row['difference']:+.4f}{p_value}"
    evaluations = board["evaluations"][row["method"]]
    cells = [str(place), f"`{row['method']}`", f"{row['mean']:.4f}{spread}", apart]
    cells += [str(row["better_than"]), str(row["worse_than"])]
    cells += [_mean(own.get(m) for own in evaluations) for m in also]
    lines.append(f"| {' | '.join(cells)} |")
  if board["teacher"]:
    told = board["teacher"]
    cells = ["", "the teacher", _mean([told.get(metric)]), "", "", ""]
    lines.append(f"| {' | '.join([*cells, *(_mean([told.get(m)]) for m in also)])} |")
  direction = "Higher" if board["higher_is_better"] else "Lower"
  count = len(board["seeds"])
  lines += [
    "",
    f"{direction} {metric} is better; means over {count} seed{'s' * (count != 1)} of"
    f" {board['total_steps']} steps each. Better and worse count the other methods that differ with"
    f" p < {SIGNIFICANT:g} in a paired t-test of the two, uncorrected for their number.",
  ]
  return "\n".join(lines)


def write_section(document: Path, task: str, board: Mapping[str, Any], command: str) -> None:
  """Puts a leaderboard into a Markdown document, in place of this task's earlier one.

  The figure lies beside it as `leaderboard_TASK.png`. Other sections are left as they are.

  Args:
    document: is made where there is none.
    task: names the section.
    board: from `run_leaderboard`.
    command: what made it, for the reader.

  Raises:
    KdjaxError: a file that cannot be written.
  """
  begin, end = f"<!-- leaderboard {task}: begin -->", f"<!-- leaderboard {task}: end -->"
  figure = document.with_name(f"leaderboard_{task}.png")
  values = {
    row["method"]: [own[board["metric"]] for own in board["evaluations"][row["method"]]]
    for row in board["rows"]
  }
  png = plots.ranked_dots(
    values,
    metric=board["metric"],
    reference=board["reference"],
    teacher=board["teacher"].get(board["metric"]),
  )
  section = "\n".join(
    [
      begin,
      f"## {board['title'] or task}\n",
      f"```\n{command}\n```\n",
      f"{board['table']}\n",
      f"![{board['metric']} of every method and seed]({figure.name})",
      end,
    ]
  )
  with writing(document):
    document.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(png)
    text = document.read_text() if document.is_file() else "# Leaderboards\n"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if place.search(text):
      text = place.sub(lambda _: section, text)
    else:
      text = f"{text.rstrip()}\n\n{section}\n"
    document.write_text(text)


def _evaluations(
  config: Config, folder: Path, teacher: Teacher | None, numbers: list[int], stop: Stop
) -> list[dict[str, float]]:
  """The final scalars of each seed, from the disk where this very run is finished."""
  path = folder / DONE
  own = {
    "config": identity(config),
    "teacher_sha256": fingerprint(teacher.frozen) if teacher else None,
    "seeds": numbers,
  }
  if path.is_file():
    saved = json.loads(path.read_text())
    if saved["run"] == own:
      return saved["evaluations"]
  found = [
    {name: value for name, value in evaluation.items() if isinstance(value, float)}
    for evaluation in train_seeds(config, folder, teacher, numbers, stop)
  ]
  metric = config["eval"]["best_metric"]
  for number, evaluation in zip(numbers, found, strict=True):
    if not math.isfinite(evaluation[metric]):
      raise KdjaxError(
        f"{folder.name}, seed {number}: {metric} is {evaluation[metric]}; lower its learning rate"
        f" or leave it out of {FIELD}.methods"
      )
  if jax.process_index() == 0:
    with writing(path):
      path.write_text(json.dumps({"run": own, "evaluations": found}, indent=1))
  return found


def _methods(config: Config) -> tuple[dict[str, Config], str]:
  """The config of every method, and the name of the reference."""
  spec = config["leaderboard"]
  methods = spec.get("methods")
  if not isinstance(methods, Mapping) or len(methods) < 2:
    raise KdjaxError(f"{FIELD}.methods = {methods!r} must map two or more names to overrides")
  if unknown := set(spec) - {"methods", "reference"}:
    raise KdjaxError(f"{FIELD}.{min(unknown)} does not exist{hint(min(unknown), ['methods'])}")
  for name, overrides in methods.items():
    if not re.fullmatch(r"[\w-]+", name) or name == "teacher":
      raise KdjaxError(
        f"{FIELD}.methods: {name!r} names a folder; letters, digits, _ and - are wanted, and not"
        " 'teacher'"
      )
    if not isinstance(overrides, Mapping):
      raise KdjaxError(f"{FIELD}.methods.{name} = {overrides!r} must have fields of its own")
  reference = spec.get("reference")
  if reference not in methods:
    raise KdjaxError(f"{FIELD}.reference = {reference!r} is none of them{hint('', methods)}")
  return {name: merge(config, own) for name, own in methods.items()}, reference


def _mean(values: Any) -> str:
  values = list(values)
  if any(value is None for value in values):
    return ABSENT
  return f"{np.mean(values):.4g}"
