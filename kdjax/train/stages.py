"""A method of several stages: runs one after another, each of which hands its student on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kdjax.errors import KdjaxError, within
from kdjax.programs.base import Program, Start
from kdjax.resolve import hint
from kdjax.teachers import Teacher
from kdjax.train.build import build_model
from kdjax.train.checkpoint import FOLDER, shapes_of
from kdjax.train.config import Config, check_config, merge
from kdjax.train.emulation import parts_of
from kdjax.train.loop import RunResult
from kdjax.train.pretrained import build_teacher, trains_teacher
from kdjax.train.queries import Before
from kdjax.train.selection import select
from kdjax.train.stage import Stop, train, trained
from kdjax.train.streams import Splits, load_data

# What a stage hands on: weights to start from, or a teacher.
GIVES = ("student", "teacher")
# Of the whole job, hence of no stage.
SHARED = ("stages", "baseline", "compare", "samples", "seed", "mesh")


class Stage(NamedTuple):
  """One run of a method.

  Attributes:
    name: of its folder; "" of a method of one run.
    config: of this run alone; its `stages` is None.
    gives: "student": the next stage's student starts from its weights, and the next objective from
      its learned parameters, where they are of the same path and shape; "teacher": it is the next
      stage's teacher, and that stage's student starts as its own config says.
    taught_by: "method": the teacher of the whole method; "before": what the stage before gives;
      "own": one that its config names.
  """

  name: str
  config: Config
  gives: str
  taught_by: str


def stages_of(config: Config) -> list[Stage]:
  """The stages of `config.stages` in order, each with the whole config of its run.

  A stage is a mapping with a `name`, perhaps `gives`, and overrides of the config (see `merge`).
  Without stages the config is the only one.

  Raises:
    KdjaxError: no stages in the list, names that are no names or not different, fields that do not
      exist or that stages share, a last stage that gives a teacher.
  """
  specs = config["stages"]
  if specs is None:
    return [Stage("", config, "student", "method")]
  if not isinstance(specs, list | tuple) or not specs:
    raise KdjaxError(
      f"config.stages = {specs!r} must be a list of at least one stage, such as"
      " [{'name': 'general', 'total_steps': 1000}], or None for a method of one run"
    )
  whole = {name: value for name, value in config.items() if name != "stages"} | {"stages": None}
  count = config["teacher"].get("count", 1)
  taken = {"teacher", FOLDER, config["compare"]["names"]["baseline"]}
  taken |= {f"teacher_{i}" for i in range(count)}
  if config["teacher"].get("kind") == "emulated":
    taken |= {part.name for part in parts_of(config)}
  stages: list[Stage] = []
  for index, spec in enumerate(specs):
    field = f"config.stages[{index}]"
    name, gives, changes = _read(spec, field, config)
    if name in taken:
      raise KdjaxError(
        f"{field}.name = {name!r} is the name of another folder; give each stage its own"
      )
    taken.add(name)
    own = merge(whole, changes)
    taught_by = "method" if own["teacher"] == config["teacher"] else "own"
    if stages and stages[-1].gives == "teacher":
      own, taught_by = _taught_by(stages[-1], own), "before"
    with within(field):
      check_config(own)
    if taught_by == "own" and trains_teacher(own):
      raise KdjaxError(
        f"{field}.teacher would have to be trained first, which is done for config.teacher alone;"
        " give its checkpoint, or a stage before with gives = 'teacher'"
      )
    stages.append(Stage(name, own, gives, taught_by))
  if stages[-1].gives == "teacher":
    raise KdjaxError(
      f"config.stages[{len(stages) - 1}].gives = 'teacher', but no stage follows it; leave it out"
    )
  return stages


def _read(spec: Any, field: str, config: Config) -> tuple[str, str, dict[str, Any]]:
  """(name, gives, overrides) of one stage."""
  if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
    raise KdjaxError(f"{field} = {spec!r} must be a mapping with a name and what differs in it")
  changes = {key: value for key, value in spec.items() if key not in ("name", "gives")}
  name, gives = spec["name"], spec.get("gives", "student")
  if not re.fullmatch(r"[\w-]+", name):
    raise KdjaxError(f"{field}.name = {name!r} must be made of letters, digits, _ and -")
  if gives not in GIVES:
    raise KdjaxError(f"{field}.gives = {gives!r} does not exist{hint(str(gives), GIVES)}")
  for key in changes:
    if key in SHARED:
      raise KdjaxError(f"{field}.{key}: all stages share config.{key}; set it there")
    if key not in config:
      known = {"name", "gives", *config} - set(SHARED)
      raise KdjaxError(f"{field}.{key} does not exist{hint(key, known)}")
  return name, gives, changes


def _taught_by(stage: Stage, config: Config) -> Config:
  """The config with the student of a stage before as its teacher; its checkpoint comes later."""
  own = {"kind": "frozen", "model": stage.config["student"], "checkpoint": "", "count": 1}
  return config | {"teacher": config["teacher"] | own}


def folder_of(stages: Sequence[Stage], index: int, folder: Path) -> Path:
  """Where a stage's run lies: the last one in the method's folder itself, as that of one run."""
  return folder if index == len(stages) - 1 else folder / stages[index].name


def train_stages(
  config: Config,
  folder: Path,
  teacher: Teacher | None,
  *,
  name: str,
  stop: Stop = lambda: False,
  splits: Splits | None = None,
) -> tuple[RunResult, Program]:
  """Trains a method's stages in turn, each resumed where an earlier start left off.

  Each stage is a run of its own, with its own optimiser, steps and checkpoints. One that is
  finished is restored, so that what it hands on is the same to the bit.

  Args:
    config: of the method.
    folder: of the last stage; those before lie in folders of their names inside it.
    teacher: of the stages whose `config.teacher` is the method's.
    name: on the progress bar.
    stop: see `run_job`.
    splits: the data of every stage; those that its own `config.selection` leaves where None.

  Returns:
    (result, program) of the last stage.
  """
  stages = stages_of(config)
  given: Start | None = None
  before: Before | None = None
  for index, stage in enumerate(stages):
    run, told = stage.config, teacher
    if stage.taught_by == "before":
      checkpoint = str(folder_of(stages, index - 1, folder))
      run = run | {"teacher": run["teacher"] | {"checkpoint": checkpoint}}
    if stage.taught_by != "method":
      told = build_teacher(run, load_data(run["data"]).whole) if run["teacher"] else None
    label = f"{name} {stage.name}".strip()
    place = folder_of(stages, index, folder)
    own = select(run, place, told, before=before, stop=stop) if splits is None else splits
    result, program = train(run, place, told, name=label, stop=stop, splits=own, given=given)
    given = before = None
    if stage.gives == "student" and index < len(stages) - 1:
      weights = trained(result, program)
      given = Start(weights.params, weights.state, result.state.objective_params)
      before = Before(stage.config["student"], weights, place)
  return result, program


def check_handover(stages: Sequence[Stage]) -> None:
  """Raises KdjaxError where a stage's student cannot start from the one before."""
  for index, (before, after) in enumerate(itertools.pairwise(stages)):
    if before.gives != "student":
      continue
    old, new = (_weights(stage) for stage in (before, after))
    if differing := [name for name in sorted(old | new) if old.get(name) != new.get(name)]:
      first = differing[0]
      raise KdjaxError(
        f"config.stages[{index + 1}].student has other weights than stage {before.name!r} hands it:"
        f" {first} is {new.get(first, 'nothing')} here and {old.get(first, 'nothing')} there. Use"
        f" one student for both, or config.stages[{index}].gives = 'teacher'"
      )


def _weights(stage: Stage) -> dict[str, str]:
  data = load_data(stage.config["data"]).whole
  model = build_model(stage.config["student"], data, "config.student")
  return shapes_of(jax.eval_shape(model.init, jax.random.key(0)).params)
