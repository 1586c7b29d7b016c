"""A whole job: the teacher, the student alone if asked for, the student distilled, the report."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data.choices import Choice
from kdjax.errors import KdjaxError, within, writing
from kdjax.evaluation.classification import finalize
from kdjax.models.base import Model, ModelVars
from kdjax.resolve import hint
from kdjax.teachers import Teacher
from kdjax.train import report
from kdjax.train.build import (
  build_model,
  build_objective,
  is_text,
  teacher_side,
)
from kdjax.train.checkpoint import fingerprint, writable
from kdjax.train.config import Config, check_config, identity, merge
from kdjax.train.emulated_teacher import prepare_emulated
from kdjax.train.emulation import parts_of
from kdjax.train.metrics import curves, read_metrics
from kdjax.train.outline import outline, teacher_shapes
from kdjax.train.pretrained import build_teacher, teacher_config, trains_teacher
from kdjax.train.queries import check_rounds
from kdjax.train.samples import write_samples
from kdjax.train.selection import checked, reference_config
from kdjax.train.stage import Stop, train, trained, versions
from kdjax.train.stages import check_handover, stages_of, train_stages
from kdjax.train.stored_teacher import is_stored, live_config, store_options, store_teacher
from kdjax.train.streams import load_data


def run_job(config: Config, workdir: Path, *, stop: Stop = lambda: False) -> dict[str, Any]:
  """Runs a config to its end, from wherever an earlier start left off.

  The teacher is trained once into WORKDIR/teacher (or loaded from `config.teacher.checkpoint`), the
  config's baseline into WORKDIR/<its name> when `config.compare.train_baseline` is set, and the
  method into WORKDIR itself (of `config.stages` the last; the others into WORKDIR/<stage>).

  Args:
    config: a plain mapping (see `configs/base.py`).
    workdir: everything is written here.
    stop: asked after every step; True saves and raises Interrupted.

  Returns:
    What `report.json` holds.

  Raises:
    KdjaxError: a mistake in config, data, checkpoint or disk; before compute where it can be known.
    Interrupted: stopped, with a checkpoint.
  """
  started = time.monotonic()
  check_config(config)
  writable(workdir)
  names = config["compare"]["names"]
  runs = [("method", workdir)]
  if config["compare"]["train_baseline"]:
    runs.insert(0, ("baseline", workdir / names["baseline"]))
  config, stored, stored_folders = stored_first(config, workdir, stop=stop)
  dry_run(config, [variant for variant, _ in runs])
  teacher, results, folders = prepare_teacher(config, workdir, stop=stop)
  results, folders = stored | results, stored_folders | folders
  prepared = tuple(results)
  told_by = "emulated" if "emulated" in results else "teacher"

  data = load_data(config["data"]).whole
  reliability, agreement, writers = {}, {}, {}
  for variant, folder in runs:
    row = names[variant]
    run_config = variant_of(config, variant)
    own_teacher = teacher_of(config, variant, teacher, workdir, stop=stop)
    result, program = train_stages(run_config, folder, own_teacher, name=row, stop=stop)
    folders[row] = folder
    own, told = split_metrics(result.evaluation)
    if before := at_start(folder):
      results[f"{row}_start"], _ = split_metrics(before)
    results[row] = own
    if is_text(data):
      writers[row] = (
        build_model(stages_of(run_config)[-1].config["student"], data, "config.student"),
        trained(result, program),
        data.tokenizer,
      )
    if told:
      results[told_by] = results.get(told_by, {}) | told
    for who, prefix in ((row, ""), (told_by, "teacher/")):
      if f"{prefix}reliability/accuracy" in result.evaluation:
        reliability[who] = _reliability(result.evaluation, prefix)
    if "agreement" in own:
      agreement[row] = {
        "agreement": own["agreement"],
        "matrix": result.evaluation.get("agreement/matrix"),
      }
  order = list(prepared) if told_by == "emulated" else ["teacher"]
  for row in names["baseline"], names["method"]:
    order += [f"{row}_start", row]
  results = {row: results[row] for row in order if row in results}
  if is_text(data) and teacher is not None and "model" in config["teacher"]:
    writer = writing_teacher(config, teacher, data)
    writer = writer and (*writer, teacher_side(data).tokenizer)
    writers = ({"teacher": writer} if writer else {}) | writers
  samples = write_samples(config, writers) if is_text(data) else {}
  info = {
    "params_sha256": fingerprint(result.state.params),
    "step": int(result.state.step),
    "seconds": round(time.monotonic() - started, 2),
    "device": _device(),
    "versions": versions(),
    "config": identity(config) | {name: config[name] for name in ("teacher", "stages")},
  }
  if jax.process_index() == 0:
    with writing(workdir / "report.html"):
      report.write_report(
        workdir,
        title=config["compare"]["title"],
        results=results,
        curves={row: curves(folder / "metrics.jsonl") for row, folder in folders.items()},
        reliability=reliability,
        agreement=agreement,
        info=info,
        samples=samples,
      )
  return {"results": results, **info} | ({"samples": samples} if samples else {})


def writing_teacher(config: Config, teacher: Teacher, data: Any) -> tuple[Model, ModelVars] | None:
  """The teacher as a model and its weights, where it is a single live one."""
  spec = config["teacher"]
  if spec["kind"] != "frozen" or not isinstance(teacher.frozen, ModelVars):
    return None
  return build_model(spec["model"], teacher_side(data), "config.teacher.model"), teacher.frozen


def at_start(folder: Path) -> dict[str, float]:
  """The evaluation of a run's weights before its first step; {} where they were random."""
  rows = read_metrics(folder / "metrics.jsonl")
  first = next((row for row in rows if row["split"] == "eval"), {"step": -1})
  names = first.keys() - {"step", "split"}
  return {name: first[name] for name in names} if first["step"] == 0 else {}


def variant_of(config: Config, variant: str) -> Config:
  """The config of the "method" (itself) or of its "baseline" (with its overrides)."""
  return merge(config, config["baseline"]) if variant == "baseline" else config


def dry_run(config: Config, variants: Sequence[str] = ("method",)) -> None:
  """Traces the runs of a job without computing anything, so that mistakes cost nothing.

  Args:
    config: checked by itself.
    variants: "method", "baseline" or both. The run that trains the teacher, if any, comes last:
      then what is said to be wrong with it is not wrong with the others too.

  Raises:
    KdjaxError: whatever is wrong with the config, its data or the mesh.
  """
  for variant in sorted(variants, reverse=True):
    with within("config.baseline") if variant == "baseline" else contextlib.nullcontext():
      own = variant_of(config, variant)
      check_config(own)
      stages = stages_of(own)
      for index, stage in enumerate(stages):
        with within(f"config.stages[{index}]") if stage.name else contextlib.nullcontext():
          dry_stage(stage.config)
      check_handover(stages)
      rounds = [(stage.config, load_data(stage.config["data"])) for stage in stages]
      handed = [False, *(stage.gives == "student" for stage in stages)]
      check_rounds(
        [(checked(own, data), data, on) for (own, data), on in zip(rounds, handed, strict=False)]
      )
  own_teachers = [config]
  baseline = variant_of(config, "baseline")
  if "baseline" in variants and baseline["teacher"] != config["teacher"]:
    own_teachers.append(baseline)
  for field, own in itertools.chain.from_iterable(map(trained_configs, own_teachers)):
    with within(field):
      trace(teacher_config(own), None)


def dry_stage(config: Config) -> None:
  """The same for one run, whose teacher is not read but known by its shapes."""
  teacher = teacher_shapes(config)
  metrics, name = trace(config, teacher), config["eval"]["best_metric"]
  if name not in metrics:
    raise KdjaxError(f"config.eval.best_metric = {name!r} is not evaluated{hint(name, metrics)}")
  choice = checked(config, load_data(config["data"]))
  if isinstance(choice, Choice) and choice.model is not None:
    with within("config.selection.train"):
      trace(reference_config(config, choice), None)


def trace(config: Config, teacher: Teacher | None) -> list[str]:
  """Traces one run; the names of its final scalar metrics."""
  own = outline(config, teacher)
  compiled, frozen = own.compiled, own.program.frozen
  jax.eval_shape(compiled.step, compiled.abstract_state, frozen, own.batch)
  pairs = jax.eval_shape(compiled.evaluate, compiled.abstract_state, frozen, own.held_out)
  metrics = finalize(jax.tree.map(lambda pair: np.ones(pair.shape), pairs))
  return [name for name, value in metrics.items() if isinstance(value, float)]


def prepare_teacher(
  config: Config, workdir: Path, *, stop: Stop
) -> tuple[Teacher | None, dict[str, dict], dict[str, Path]]:
  """The teacher of a config, loaded or trained; (teacher, result rows, run folders)."""
  spec = config["teacher"]
  if spec and spec["kind"] == "emulated":
    return prepare_emulated(config, workdir, stop=stop)
  results: dict[str, dict] = {}
  folders: dict[str, Path] = {}
  if trains_teacher(config):
    for index in range(spec["count"]):
      row = "teacher" if spec["count"] == 1 else f"teacher_{index}"
      folders[row] = workdir / row
      result, _ = train(teacher_config(config, index), folders[row], None, name=row, stop=stop)
      results[row], _ = split_metrics(result.evaluation)
  if not spec:
    return None, results, folders
  data = load_data(config["data"]).whole
  return build_teacher(config, data, trained=list(folders.values())), results, folders


def stored_first(
  config: Config, workdir: Path, *, stop: Stop
) -> tuple[Config, dict[str, dict], dict[str, Path]]:
  """(config, result rows, run folders) once a teacher of stored signals is trained and asked.

  What needs its signals is traced afterwards, before any student is trained. Any other config is
  handed back as it is.
  """
  if not is_stored(config):
    return config, {}, {}
  live, data = live_config(config), load_data(config["data"]).whole
  store_options(config)
  build_objective(config["objective"], data=data)
  build_model(config["student"], data, "config.student")
  dry_run(live, ())
  _, results, folders = prepare_teacher(live, workdir, stop=stop)
  return store_teacher(config, workdir, stop=stop), results, folders


def teacher_of(
  config: Config, variant: str, teacher: Teacher | None, workdir: Path, *, stop: Stop
) -> Teacher | None:
  """The teacher of the method, or another where the baseline says otherwise of it.

  Models that both need are trained once, by the same runs.
  """
  own = variant_of(config, variant)
  same = own["teacher"] == config["teacher"]
  return teacher if same else prepare_teacher(own, workdir, stop=stop)[0]


def trained_configs(config: Config) -> list[tuple[str, Config]]:
  """(field, config with that model alone as teacher) of each model that the job trains first."""
  if config["teacher"] and config["teacher"]["kind"] == "emulated":
    parts = [(f"config.teacher.emulate ({p.name})", p.config) for p in parts_of(config)]
  else:
    parts = [("config.teacher.train", config)]
  return [(field, own) for field, own in parts if trains_teacher(own)]


def split_metrics(evaluation: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
  """(the student's scalars, the teacher's) from one evaluation."""
  scalars = {name: value for name, value in evaluation.items() if isinstance(value, float)}
  told = {k.removeprefix("teacher/"): v for k, v in scalars.items() if k.startswith("teacher/")}
  return {k: v for k, v in scalars.items() if not k.startswith("teacher/")}, told


def _reliability(evaluation: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
  return {
    name: np.asarray(evaluation[f"{prefix}reliability/{name}"])
    for name in ("accuracy", "confidence", "count")
  }


def _device() -> str:
  devices = jax.devices()
  return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
