"""A teacher from config: an average of the student, or models read from checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from kdjax import teachers
from kdjax.data.base import DataSet
from kdjax.data.text import TextPairs
from kdjax.errors import KdjaxError, within
from kdjax.generation import emulated_variables
from kdjax.models.base import Model, ModelVars
from kdjax.resolve import hint
from kdjax.signals import Cache
from kdjax.teachers import Teacher
from kdjax.train.build import build_model, teacher_side
from kdjax.train.checkpoint import FOLDER, Checkpoints, fingerprint
from kdjax.train.config import Config, check_config, merge
from kdjax.train.emulation import TARGET, emulated_model, parts_of
from kdjax.train.mesh import AXES, meshes_of, shardings, teacher_rules
from kdjax.train.streams import teacher_data

KINDS = ("cached", "ema", "emulated", "frozen")
READY = ("pretrained", "pretrained_clip")  # models that teach as their checkpoint has them
DTYPES = ("float32", "bfloat16", "float16", "int8", None)


def build_teacher(
  config: Config, data: DataSet, *, trained: Sequence[Path] = (), abstract: bool = False
) -> Teacher:
  """The teacher that `config.teacher` describes.

  Args:
    config: the whole config.
    data: gives class count and image shape.
    trained: folders of the runs that trained it, unless `config.teacher.checkpoint` is given.
    abstract: shapes instead of weights; nothing is read.

  Raises:
    KdjaxError: an unknown kind, or a checkpoint that is not there or does not fit.
  """
  side = teacher_side(data)
  teacher = _build(config, side, trained=trained, abstract=abstract)
  if isinstance(data, TextPairs):
    return teachers.after_source(teacher)
  if side is data:
    return teacher
  if config["teacher"]["kind"] not in ("emulated", "frozen"):
    raise KdjaxError(
      f"config.teacher.kind = {config['teacher']['kind']!r} reads the student's tokens; leave"
      " config.data.teacher_tokenizer out, or use 'frozen'"
    )
  return teachers.prefixed(teacher)


def _build(
  config: Config, data: DataSet, *, trained: Sequence[Path] = (), abstract: bool = False
) -> Teacher:
  spec = config["teacher"]
  if spec["kind"] == "ema":
    student = build_model(config["student"], data, "config.student")
    with within("config.teacher"):
      return teachers.ema(student, decay=spec["decay"])
  if spec["kind"] == "cached":
    return _cached(config, data, abstract=abstract)
  if spec["kind"] == "emulated":
    return _emulated(config, data, trained=trained, abstract=abstract)
  if spec["kind"] != "frozen":
    raise KdjaxError(
      f"config.teacher.kind = {spec['kind']!r} does not exist{hint(spec['kind'], KINDS)}"
    )
  if spec["dtype"] not in DTYPES:
    known = ", ".join(map(str, DTYPES))
    raise KdjaxError(f"config.teacher.dtype = {spec['dtype']!r} must be one of {known}")
  model = build_model(spec["model"], data, "config.teacher.model")
  rules = teacher_rules(spec["rules"])
  if model.settled is not None:
    # Whole on each device: what is computed of it is then the same on every mesh, to the bit, so
    # that a run may go on over another.
    rules = {}
  given = [Path(path) for path in checkpoint_paths(spec["checkpoint"])]
  folders = given or list(trained)
  if model.start is None and not folders and spec["fine_tune"] is False:
    raise KdjaxError(
      "config.teacher.fine_tune = False, but config.teacher.model begins from random weights; give"
      " config.teacher.checkpoint, or leave fine_tune at None"
    )
  if model.start is not None and not folders:
    if abstract:
      return _cast(model, jax.eval_shape(model.init, jax.random.key(0)), spec["dtype"], abstract)
    placed = _placed(model, _mesh(config), rules)
    dtype = spec["dtype"] if model.settled is None else None
    weights = model.start(placed, dtype)
    own = jax.eval_shape(model.init, jax.random.key(0)).params
    if absent := [name for name in own if name not in weights.params]:
      raise KdjaxError(
        f"config.teacher.model: its checkpoint has no {', '.join(absent)} for these data; set"
        " config.teacher.fine_tune = True"
      )
    if model.settled is not None:
      return _cast(model, weights, spec["dtype"], abstract)
    return teachers.frozen(model, weights)
  if abstract:
    weights = [jax.eval_shape(model.init, jax.random.key(0))] * (len(given) or spec["count"])
    with within("config.teacher.checkpoint"):
      for folder in given:
        find_checkpoints(folder)
  else:
    mesh = _mesh(config)
    with within("config.teacher.checkpoint") if given else contextlib.nullcontext():
      weights = [load_model(folder, model, mesh, rules) for folder in folders]
  members = [_cast(model, w, spec["dtype"], abstract) for w in weights]
  if len(members) == 1:
    return members[0]
  with within("config.teacher"):
    return teachers.ensemble(members, rule=spec["combine"], temperature=spec["temperature"])


def _mesh(config: Config):
  """Where the teacher lies: on devices of its own, or on the student's."""
  mesh, own = meshes_of(config)
  return own or mesh


def _placed(model: Model, mesh, rules: Mapping[str, Any]) -> ModelVars:
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  return shardings(abstract, model.axes(), rules, mesh)


def _cast(model: Model, weights: ModelVars, dtype: str | None, abstract: bool) -> Teacher:
  if model.settled is not None:
    model, settle = model.settled
    weights = jax.eval_shape(settle, weights) if abstract else settle(weights)
  if not abstract:
    return teachers.frozen(model, weights, dtype=dtype)
  shape = jax.eval_shape(lambda w: teachers.frozen(model, w, dtype=dtype).frozen, weights)
  return teachers.frozen(model, shape)


def _cached(config: Config, data: DataSet, *, abstract: bool) -> Teacher:
  """The stored teacher; the live one beside it, for evaluation, where its weights are given."""
  spec = config["teacher"]
  with within("config.teacher.cache"):
    cache = Cache(spec["cache"])
  own = config | {"teacher": dict(spec) | {"kind": "frozen"}}
  if trains_teacher(own):  # its weights are not told
    return teachers.cached(cache)
  live = build_teacher(own, data, abstract=abstract)
  if not abstract and (found := fingerprint(live.frozen)) != cache.manifest.spec.teacher:
    raise KdjaxError(
      f"config.teacher.cache: {cache.folder} was made of another teacher (weights of SHA-256"
      f" {cache.manifest.spec.teacher[:12]}...) than config.teacher.model and checkpoint give"
      f" ({found[:12]}...); cache that teacher, or take the one that the cache was made of"
    )
  return teachers.cached(cache, live=live)


def _emulated(config: Config, data: DataSet, *, trained: Sequence[Path], abstract: bool) -> Teacher:
  """Several models as the one that they emulate."""
  model = emulated_model(config, data)
  folders, members = {folder.name: folder for folder in trained}, []
  for part in parts_of(config):
    if part.name == TARGET:
      continue
    own = [folders[part.name]] if part.name in folders else []
    if trains_teacher(part.config) and not (own or abstract):
      raise KdjaxError(
        f"config.teacher.emulate: {part.name} would have to be trained first; give its checkpoint"
      )
    members.append(_build(part.config, data, trained=own, abstract=abstract).frozen)
  return teachers.frozen(model, emulated_variables(members))


def teacher_config(config: Config, index: int = 0) -> Config:
  """The config of the run that trains the teacher (the `index`-th of an ensemble)."""
  spec = config["teacher"]
  own = merge(config | {"profile": ""}, spec["train"])  # students alone are profiled
  check_config(own)
  return own | {
    "student": spec["model"],
    "student_rules": {},
    "optimizer_rules": {},
    "teacher": own["teacher"] | {"mesh": dict.fromkeys(AXES, 0)},  # it is trained on all devices
    "data": teacher_data(own["data"]),
    "seed": own["seed"] + 1000 + index,  # a teacher is not the student's twin
    "program": {"name": "distill"},
    "domain_weights": {"name": "fixed"},  # they follow a student
    "selection": {"name": "everything"},  # it may be the teacher's own
    "stages": None,
  }


def trains_teacher(config: Config) -> bool:
  """Whether the job trains its teacher, rather than load it, read it or average the student.

  Where `config.teacher.fine_tune` is None, every model is trained but a `pretrained` one that has
  all its weights: others lack a head for the task, or begin from nothing.
  """
  spec = config["teacher"]
  if spec and spec["kind"] == "emulated":
    return any(trains_teacher(part.config) for part in parts_of(config))
  if not spec or spec["kind"] in ("ema", "cached") or spec["checkpoint"]:
    return False
  if spec["fine_tune"] is not None:
    return spec["fine_tune"]
  model = spec["model"]
  return not (model.get("name") in READY and model.get("weights", True) is True)


def checkpoint_paths(checkpoint: Any) -> list[str]:
  """The folders that `config.teacher.checkpoint` names, one or several; [] for none."""
  paths = [checkpoint] if isinstance(checkpoint, str) else checkpoint
  if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
    raise KdjaxError(f"config.teacher.checkpoint = {checkpoint!r} must be a folder or several")
  return [path for path in paths if path]


def find_checkpoints(folder: Path) -> Path:
  """The checkpoint folder in or at `folder`; raises KdjaxError when there is none."""
  for candidate in (folder / FOLDER, folder):
    if candidate.is_dir() and any(child.name.isdigit() for child in candidate.iterdir()):
      return candidate
  raise KdjaxError(
    f"no checkpoint in {folder}: give the folder of a finished run, or its {FOLDER} folder"
  )


def load_model(folder: Path, model: Model, mesh, rules: Mapping[str, Any]) -> ModelVars:
  """A model's weights from a run's newest readable checkpoint: its moving average where it has one.

  Raises:
    KdjaxError: no checkpoint there, none readable, or another architecture.
  """
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  placed = shardings(abstract, model.axes(), rules, mesh)
  checkpoints = Checkpoints(find_checkpoints(folder), read_only=True)
  names = {"params": "params", "model_state": "state"}
  newest = checkpoints.read_meta()
  if any(name.startswith("ema/") for name in newest.get("shapes", ())):
    names = {"ema": "params", "model_state": "state"}
  found = checkpoints.restore(
    {item: getattr(abstract, field) for item, field in names.items()},
    {item: getattr(placed, field) for item, field in names.items()},
  )
  checkpoints.close()
  return ModelVars(**{field: found.items[item] for item, field in names.items()})
