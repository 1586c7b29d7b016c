"""Method against baseline over several seeds, one budget, one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kdjax.errors import KdjaxError, writing
from kdjax.evaluation.corruption import ERROR, mean_corruption_error
from kdjax.evaluation.statistics import paired_comparison
from kdjax.teachers import Teacher
from kdjax.train import report
from kdjax.train.checkpoint import writable
from kdjax.train.config import Config, check_config
from kdjax.train.job import dry_run, prepare_teacher, stored_first, teacher_of, variant_of
from kdjax.train.selection import select
from kdjax.train.stage import Stop, train
from kdjax.train.stages import stages_of, train_stages

VARIANTS = ("baseline", "method")


def run_compare(
  config: Config, workdir: Path, *, seeds: int, stop: Stop = lambda: False
) -> dict[str, Any]:
  """Trains the config's baseline and its method from the same seeds and tests the difference.

  Seed i gives both variants the same initial student and the same order of the data. The teacher is
  trained once, in WORKDIR/teacher, and serves all, unless the baseline says otherwise of it.

  Args:
    config: a plain mapping; its `baseline` holds the baseline's overrides.
    workdir: everything is written here; a second call goes on where the first stopped.
    seeds: number of seeds, at least 1; the first is `config.seed`.
    stop: see `run_job`.

  Returns:
    What `comparison.json` holds.

  Raises:
    KdjaxError: see `run_job`; no seeds, no baseline, or a metric that the evaluation lacks.
  """
  check_config(config)
  writable(workdir)
  if seeds < 1:
    raise KdjaxError(f"--seeds = {seeds} must be at least 1")
  if not config["baseline"]:
    raise KdjaxError("config.baseline is empty; give the overrides that make the baseline")
  config, stored, _ = stored_first(config, workdir, stop=stop)
  dry_run(config, VARIANTS)
  teacher, results, _ = prepare_teacher(config, workdir, stop=stop)
  results = stored | results
  teachers = {
    variant: teacher_of(config, variant, teacher, workdir, stop=stop) for variant in VARIANTS
  }
  numbers = [config["seed"] + i for i in range(seeds)]
  metric, higher = config["eval"]["best_metric"], config["eval"]["higher_is_better"]
  values, scalars = {}, {}
  for variant in VARIANTS:
    own = variant_of(config, variant)
    evaluations = train_seeds(own, workdir / variant, teachers[variant], numbers, stop)
    values[variant] = [evaluation[metric] for evaluation in evaluations]
    scalars[variant] = [
      {name: value for name, value in evaluation.items() if isinstance(value, float)}
      for evaluation in evaluations
    ]
  comparison = {
    "metric": metric,
    "higher_is_better": higher,
    "title": config["compare"]["title"],
    "names": config["compare"]["names"],
    "seed_numbers": numbers,
    "total_steps": sum(stage.config["total_steps"] for stage in stages_of(config)),
    "teacher": {row: own.get(metric) for row, own in results.items()},
    "variants": values,
    "evaluations": scalars,
    **paired_comparison(values["baseline"], values["method"]),
  }
  if f"{ERROR}/" in "".join(scalars["method"][0]):
    pairs = zip(scalars["method"], scalars["baseline"], strict=True)
    comparison["mean_corruption_error"] = [mean_corruption_error(*pair) for pair in pairs]
  if jax.process_index() == 0:
    with writing(workdir / "comparison.json"):
      comparison["table"] = report.write_comparison(workdir, comparison)
  return comparison


def train_seeds(
  config: Config, folder: Path, teacher: Teacher | None, seeds: list[int], stop: Stop
) -> list[dict[str, Any]]:
  """The final evaluation of each seed: side by side in one program, or one after the other.

  Seeds of a method of stages run one after the other.
  """
  single = config["stages"] is None
  splits = select(config, folder, teacher, stop=stop) if single else None
  if config["compare"]["vectorize"] and single:
    # The best seed's checkpoint is of no use: only the newest are kept.
    own = config | {"checkpoint": config["checkpoint"] | {"keep_best": 0}}
    result, _ = train(own, folder, teacher, name=folder.name, stop=stop, seeds=seeds, splits=splits)
    return [_of_seed(result.evaluation, i) for i in range(len(seeds))]
  return [
    train_stages(
      config | {"seed": seed},
      folder / f"seed{seed}",
      teacher,
      name=f"{folder.name} seed {seed}",
      stop=stop,
      splits=splits,
    )[0].evaluation
    for seed in seeds
  ]


def _of_seed(evaluation: Mapping[str, Any], place: int) -> dict[str, Any]:
  prefix = f"seed{place}/"
  return {k.removeprefix(prefix): v for k, v in evaluation.items() if k.startswith(prefix)}
