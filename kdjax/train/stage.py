"""One run of one config: the program, its data, its checkpoints, the loop."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from kdjax.errors import KdjaxError
from kdjax.models.base import Model, ModelVars
from kdjax.programs.base import Program, Start
from kdjax.programs.replicate import replicate
from kdjax.teachers import Teacher
from kdjax.train.build import build_program
from kdjax.train.checkpoint import FOLDER, Checkpoints, fingerprint
from kdjax.train.config import Config, differences, identity
from kdjax.train.domains import follow_domains
from kdjax.train.loop import Interrupted, RunResult, Schedule, run
from kdjax.train.lost import is_lost
from kdjax.train.mesh import Rules, meshes_of, moment_rules, shardings, student_rules, teacher_rules
from kdjax.train.rollback import rolling_back
from kdjax.train.streams import Splits, load_data, open_data
from kdjax.train.timing import profile_range

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "kdjax")
LOG = logging.getLogger("kdjax")
Stop = Callable[[], bool]


def train(
  config: Config,
  folder: Path,
  teacher: Teacher | None,
  *,
  name: str,
  stop: Stop = lambda: False,
  seeds: Sequence[int] | None = None,
  splits: Splits | None = None,
  given: Start | None = None,
  wrap: Callable[[Program, Model], Program] = lambda program, student: program,
) -> tuple[RunResult, Program]:
  """One run of one program, resumed where an earlier start left off.

  Args:
    config: of this run alone.
    folder: its checkpoints, metrics and events.
    teacher: or None.
    name: on the progress bar.
    stop: see `run_job`.
    seeds: run these side by side in one program instead of `config.seed`.
    splits: what of the data to read; all that `config.data` gives where None.
    given: what the student starts from in place of its own start. The run is then bound to it, as
      it is to its config; its arrays are donated.
    wrap: `wrap(program, student)` is run in place of the program, such as one that is evaluated in
      other ways.

  Returns:
    (result, program).
  """
  if stop():
    raise Interrupted(f"did not begin {name}")
  mesh, teacher_mesh = meshes_of(config)
  own_rules = student_rules(config["student_rules"])
  data = splits or load_data(config["data"])
  program, student = build_program(config, data.whole, teacher)
  weights = None
  if student.frozen:  # under adapters: read on every start, since no checkpoint holds it
    weights = _start(student, mesh, own_rules)
    program = program._replace(frozen=program.frozen._replace(student=weights.frozen))
  program = wrap(program, student)
  if seeds is not None:
    program = replicate(program, seeds)
  spec = config["checkpoint"]
  checkpoints = Checkpoints(
    folder / FOLDER,
    keep_last=spec["keep_last"],
    keep_best=spec["keep_best"],
    best_metric=config["eval"]["best_metric"],
    higher_is_better=config["eval"]["higher_is_better"],
  )
  own = identity(config) | ({} if seeds is None else {"seeds": list(seeds)})
  meta = {
    "config": own,
    "teacher_sha256": fingerprint(frozen_of(program)),
    "start_sha256": None if given is None else fingerprint(given),
    "rows": {"train": len(data.train), "test": len(data.whole.test)},
    "versions": versions(),
    "mesh": dict(mesh.shape),
  }

  def start() -> Start | None:
    if given is not None or student.start is None:
      return given
    own = weights or _start(student, mesh, own_rules)
    return Start(own.params, own.state)

  def matches(saved: Mapping[str, Any]) -> None:
    lines = differences(saved["config"], own)
    if saved["teacher_sha256"] != meta["teacher_sha256"]:
      lines.append("the teacher's weights (config.teacher) are not those it was trained with")
    if saved.get("start_sha256") != meta["start_sha256"]:
      lines.append("the weights that the stage before hands on are not those it started from")
    if saved.get("rows", meta["rows"]) != meta["rows"]:
      lines.append(
        f"config.data gave {_told(saved['rows'])}, and gives {_told(meta['rows'])}: files of it are"
        " gone, new or others"
      )
    if lines:
      raise KdjaxError(
        f"{folder / FOLDER} holds a run of another config: {'; '.join(lines[:5])}. Use the same"
        " config to go on with it, or another --workdir to start anew"
      )

  read = open_data(config, data, mesh, program.streams, seeds=seeds, prepare_on=program.prepare_on)
  read = follow_domains(config, data, program, read, mesh, seeds=seeds)
  beginning = read.stream.get_state()

  profiled = profile_range(config["profile"], config["total_steps"])

  def attempt(skip: int) -> RunResult:
    read.stream.set_state(beginning)
    return run(
      program,
      read,
      mesh,
      Schedule(
        total_steps=config["total_steps"],
        log_every=config["eval"]["log_every"],
        eval_every=config["eval"]["every"],
        save_every=spec["every"],
      ),
      checkpoints,
      workdir=folder,
      seed=config["seed"],
      meta=meta,
      matches=matches,
      rules=teacher_rules(config["teacher"].get("rules", {})),
      own_rules=own_rules,
      moment_rules=moment_rules(config),
      other=teacher_mesh,
      start=start,
      name=name,
      stop=stop,
      skip=skip,
      profile=profiled,
    )

  try:
    back = config["on_nonfinite"] == "roll_back"
    result = rolling_back(attempt, checkpoints) if back else attempt(0)
  except Exception as error:
    # The save under way may be the newest that is good; if it fails, too, the first error is told.
    # One that wants a process which is gone is not waited for: it would take minutes.
    if not is_lost(error):
      with contextlib.suppress(Exception):
        checkpoints.close()
    raise
  checkpoints.close()
  LOG.info("%s: done in %.1f s", name, result.seconds)
  return result, program


def trained(result: RunResult, program: Program) -> ModelVars:
  """The student's weights after a run: their moving average where there is one."""
  state = result.state
  params = state.ema if jax.tree.leaves(state.ema) else state.params
  return ModelVars(params, state.model_state, program.frozen.student)


def frozen_of(program: Program) -> Any:
  """All that a program reads and never changes: the same wherever its teacher lies."""
  frozen = program.frozen
  return frozen if program.apart is None else frozen._replace(teacher=program.apart.frozen)


def _start(student: Model, mesh: Mesh, rules: Rules) -> ModelVars:
  """The weights that a student begins with, on the mesh."""
  abstract = jax.eval_shape(student.init, jax.random.key(0))
  return student.start(shardings(abstract, student.axes(), rules, mesh))


def _told(rows: Mapping[str, int]) -> str:
  return " and ".join(f"{count:,} rows to {name} on" for name, count in rows.items())


def versions() -> dict[str, str]:
  """Version of every package whose change may change numbers."""
  found = {package: importlib.metadata.version(package) for package in PACKAGES}
  return {"python": platform.python_version()} | found
