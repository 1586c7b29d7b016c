"""From a config to models, objectives, teachers and programs, every name checked first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax

from kdjax import models, objectives, programs
from kdjax.data.base import DataSet
from kdjax.errors import KdjaxError
from kdjax.models.base import Model
from kdjax.objectives.base import Objective
from kdjax.objectives.combinators import combine
from kdjax.programs.base import Program
from kdjax.resolve import resolve
from kdjax.teachers import Teacher
from kdjax.train import optimizers

Spec = Mapping[str, Any]


def named(namespace, spec: Spec, field: str) -> Callable:
  """The function that `spec["name"]` names, with the rest of `spec` as keyword arguments."""
  if "name" not in spec:
    raise KdjaxError(f"{field}.name is missing; what exists: {', '.join(namespace.__all__)}")
  arguments = {key: value for key, value in spec.items() if key != "name"}
  return resolve(namespace, spec["name"], arguments, field=f"{field}.name")


def build_model(spec: Spec, data: DataSet, field: str) -> Model:
  """A model for a data set; `num_classes` and `image_shape` are the data's unless given."""
  shape = {"num_classes": data.num_classes, "image_shape": data.image_shape}
  model = named(models, shape | dict(spec), field)()
  if model.num_classes < data.num_classes:
    raise KdjaxError(
      f"{field}.num_classes = {model.num_classes}, but the data set {data.name!r} has"
      f" {data.num_classes} classes"
    )
  return model


def build_objective(spec: Spec, field: str = "config.objective") -> Objective:
  """An objective by name, or `combine` with `terms`: name to {weight, objective}."""
  if spec.get("name") != "combine":
    return named(objectives, spec, field)()
  terms = spec.get("terms")
  if not terms or set(spec) != {"name", "terms"}:
    raise KdjaxError(f"{field}: combine takes exactly the field terms, which must not be empty")
  parts = {}
  for name, term in terms.items():
    if set(term) != {"weight", "objective"}:
      raise KdjaxError(
        f"{field}.terms.{name} must have the fields weight and objective; it has {sorted(term)}"
      )
    parts[name] = (
      float(term["weight"]),
      build_objective(term["objective"], f"{field}.terms.{name}.objective"),
    )
  return combine(parts)


def build_optimizer(
  spec: Spec, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser of `config.optimizer`, and its learning rate by step."""
  spec = dict(spec)
  rate = optimizers.schedule(
    spec.pop("learning_rate"),
    kind=spec.pop("schedule", "constant"),
    total_steps=total_steps,
    warmup_steps=spec.pop("warmup_steps", 0),
  )
  shared = {key: spec.pop(key) for key in ("clip_norm", "groups") if key in spec}
  direction = named(optimizers, spec, "config.optimizer")()
  return optimizers.make_optimizer(direction, rate, **shared), rate


def build_program(
  config: Mapping[str, Any], data: DataSet, teacher: Teacher | None
) -> tuple[Program, Model]:
  """The program of one run, and its student.

  Args:
    config: the whole config as a plain mapping.
    data: gives class count and image shape.
    teacher: None for an objective on labels alone.

  Returns:
    (program, student).

  Raises:
    KdjaxError: anything in the config that does not exist, does not fit or is out of range.
  """
  student = build_model(config["student"], data, "config.student")
  optimizer = dict(config["optimizer"])
  own = {key: optimizer.pop(key) for key in ("ema_decay", "accumulate") if key in optimizer}
  tx, _ = build_optimizer(optimizer, config["total_steps"])
  make = named(programs, config["program"], "config.program")
  program = make(student, build_objective(config["objective"]), tx, teacher=teacher, **own)
  return program, student
