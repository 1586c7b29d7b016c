"""From a config to models, objectives, teachers and programs, every name checked first."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import models, objectives, programs
from kdjax.data.base import DataSet
from kdjax.data.driving import Trips
from kdjax.data.text import ClassifiedText, TextData, TextPairs, Vocabulary
from kdjax.errors import KdjaxError, within
from kdjax.generation.text import end_ids
from kdjax.models.base import Model, ModelVars
from kdjax.models.layers import over_rows
from kdjax.models.starts import adopting, containing, inheriting
from kdjax.objectives.base import Objective
from kdjax.objectives.combinators import combine
from kdjax.objectives.standardized import standardized
from kdjax.outputs import Head
from kdjax.programs.answers import with_answers
from kdjax.programs.apart import apart
from kdjax.programs.base import Apart, Program
from kdjax.programs.distill import teacher_taps
from kdjax.programs.drives import drives
from kdjax.programs.evaluators import (
  HEADED,
  Evaluator,
  classifier,
  corrupted_images,
  label_maps,
  language,
  named_classes,
)
from kdjax.programs.guard import skip_nonfinite
from kdjax.resolve import check_type, hint, resolve
from kdjax.teachers import Teacher
from kdjax.train import optimizers
from kdjax.train.mesh import own_sizes, row_axes_of, student_rules

Spec = Mapping[str, Any]

ON_NONFINITE = ("stop", "skip", "roll_back")
# What `config.optimizer` holds beside the optimiser's own arguments.
OPTIMIZER = {
  "learning_rate": float,
  "schedule": str,
  "warmup_steps": int,
  "clip_norm": float | None,
  "groups": None,
  "ema_decay": float | None,
  "accumulate": int,
}


def named(
  namespace, spec: Spec, field: str, *, given: Collection[str] = (), also: Iterable[str] = ()
) -> Callable:
  """The function that `spec["name"]` names, with the rest of `spec` as keyword arguments.

  `given` and `also` are as in `resolve`.
  """
  if not isinstance(spec, Mapping) or "name" not in spec:
    raise KdjaxError(f"{field}.name is missing{hint('', namespace.__all__)}")
  arguments = {key: value for key, value in spec.items() if key != "name"}
  return resolve(namespace, spec["name"], arguments, field=f"{field}.name", given=given, also=also)


def made(namespace, spec: Spec, field: str, *, also: Iterable[str] = ()) -> Any:
  """What the function that `spec` names returns; what it finds wrong is told with `field`."""
  function = named(namespace, spec, field, also=also)
  with within(field):
    return function()


def build_model(spec: Spec, data: DataSet | TextData | Vocabulary, field: str) -> Model:
  """A model for a data set; `num_classes` and `image_shape` are the data's unless given.

  A constructor that asks for `calibration` gets `calibration(rows)`, which reads so many rows of
  training text, unless the data are no text.
  """
  asked = _asked(spec)
  given = (
    {"calibration": calibration(data)}
    if "calibration" in asked and isinstance(data, TextData | ClassifiedText)
    else {}
  )
  function = named(models, _shape(spec, data) | dict(spec), field, given=("calibration",))
  with within(field):
    model = function(**given)
  if model.num_classes < data.num_classes:
    raise KdjaxError(
      f"{field}.num_classes = {model.num_classes}, but the data set {data.name!r} has"
      f" {data.num_classes} classes"
      + (", the tokens of config.data.tokenizer" if is_text(data) else "")
    )
  if places := getattr(data, "places", ()):
    _check_places(model, data, places, field)
  return model


def _check_places(model: Model, data: DataSet, places: tuple[int, ...], field: str) -> None:
  image = {"image": jnp.zeros((1, *data.image_shape))}
  variables = jax.eval_shape(model.init, jax.random.key(0))
  logits = jax.eval_shape(lambda v: model.apply(v, image)[0].logits, variables)
  if logits.ndim != 3 or logits.shape[1] != places[0] * places[1]:
    raise KdjaxError(
      f"{field} gives logits of shape {logits.shape}, and {data.name} have labels for"
      f" {places[0]} x {places[1]} places; take a model such as segformer, whose stride is"
      " config.data.stride"
    )


def _shape(spec: Spec, data: DataSet | TextData | Vocabulary) -> dict[str, Any]:
  """What the data decide of a model, as far as its constructor asks for it."""
  shape = {
    name: getattr(data, name)
    for name in ("num_classes", "image_shape", "bev_shape", "start", "class_texts", "vocab")
    if hasattr(data, name)
  }
  asked = _asked(spec)
  return {name: value for name, value in shape.items() if name in asked}


def _asked(spec: Spec) -> Collection[str]:
  """The arguments of a model's constructor; none where there is no such model."""
  function = getattr(models, str(spec.get("name")), None)
  return inspect.signature(function).parameters if callable(function) else ()


def calibration(data: Any) -> Callable[[int], dict[str, np.ndarray]]:
  """Reads rows of training text that lie evenly over all of it: the same at every call."""

  def read(rows: int) -> dict[str, np.ndarray]:
    last = len(data.train) - 1
    places = np.unique(np.linspace(0, last, min(rows, last + 1)).round().astype(np.int64))
    batch = data.train.read(places)
    return {key: batch[key] for key in ("tokens", "segment_ids", "positions")}

  return read


def build_objective(spec: Spec, field: str = "config.objective", *, data: Any = None) -> Objective:
  """An objective by name, or one made of others.

  `combine` takes `terms`, name to {weight, objective}; `standardized` takes one `objective`.

  An objective that asks for `shared_tokens`, `word_pieces`, `novel` or `examples` gets those of the
  data unless given.
  """
  if spec.get("name") == "standardized":
    if set(spec) != {"name", "objective"} or not isinstance(spec["objective"], Mapping):
      raise KdjaxError(f"{field}: standardized takes exactly the field objective, a mapping")
    inside = build_objective(spec["objective"], f"{field}.objective", data=data)
    return within(field)(standardized)(inside)
  if spec.get("name") != "combine":
    objective = made(objectives, _from_data(spec, data) | dict(spec), field)
    # Layers and shapes are known only when the functions are traced.
    prepare = objective.prepare and within(field)(objective.prepare)
    return objective._replace(
      init=within(field)(objective.init), apply=within(field)(objective.apply), prepare=prepare
    )
  terms = spec.get("terms")
  if not terms or not isinstance(terms, Mapping) or set(spec) != {"name", "terms"}:
    raise KdjaxError(f"{field}: combine takes exactly the field terms, which must not be empty")
  parts = {}
  for name, term in terms.items():
    own = f"{field}.terms.{name}"
    if not isinstance(term, Mapping) or set(term) != {"weight", "objective"}:
      raise KdjaxError(f"{own} = {term!r} must have exactly the fields weight and objective")
    check_type(term["weight"], float, f"{own}.weight")
    parts[name] = (
      float(term["weight"]),
      build_objective(term["objective"], f"{own}.objective", data=data),
    )
  return combine(parts)


def _from_data(spec: Spec, data: Any) -> dict[str, Any]:
  """What an objective asks of the data: of their tokens, or the number of examples."""
  function = getattr(objectives, str(spec.get("name")), None)
  asked = inspect.signature(function).parameters if callable(function) else ()
  given = {}
  if isinstance(data, TextData):
    tokens = ("shared_tokens", "word_pieces")
    given = {name: getattr(data, name) for name in tokens if name in asked}
  if "novel" in asked and getattr(data, "novel", ()):
    given["novel"] = data.novel
  if "examples" in asked and data is not None:
    source = data.train
    while hasattr(source, "source"):  # records keep the index of what they were chosen from
      source = source.source
    given["examples"] = len(source)
  return given


def build_optimizer(
  spec: Spec, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser of `config.optimizer`, and its learning rate by step."""
  if "learning_rate" not in spec:
    raise KdjaxError("config.optimizer.learning_rate is missing; give it, such as 1e-3")
  for name in OPTIMIZER.keys() & spec.keys():
    check_type(spec[name], OPTIMIZER[name], f"config.optimizer.{name}")
  rate = optimizers.schedule(
    spec["learning_rate"],
    kind=spec.get("schedule", "constant"),
    total_steps=total_steps,
    warmup_steps=spec.get("warmup_steps", 0),
  )
  own = {key: value for key, value in spec.items() if key not in OPTIMIZER}
  direction = made(optimizers, own, "config.optimizer", also=OPTIMIZER)
  shared = {key: spec[key] for key in ("clip_norm", "groups") if key in spec}
  return optimizers.make_optimizer(direction, rate, **shared), rate


def build_program(
  config: Mapping[str, Any], data: DataSet | TextData, teacher: Teacher | None
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
  if student.inherit is not None:
    student = inheriting(student, None if teacher is None else teacher.frozen)
  if student.contains:
    student = containing(student, None if teacher is None else teacher.frozen)
  if student.adopt is not None:
    student = _adopting(student, teacher, data)
  _check_start(student, data)
  optimizer = config["optimizer"]
  tx, _ = build_optimizer(optimizer, config["total_steps"])
  own = {key: optimizer[key] for key in ("ema_decay", "accumulate") if key in optimizer}
  make = named(
    programs,
    config["program"],
    "config.program",
    given=("teacher", "ema_decay", "accumulate", "evaluator", "eos_ids", "total_steps"),
  )
  asked = inspect.signature(make).parameters
  if "total_steps" in asked:
    own["total_steps"] = config["total_steps"]
  if "eos_ids" in asked:
    if not isinstance(data, TextData | TextPairs):
      raise KdjaxError(f"config.program writes text, and the data set {data.name!r} is none")
    own["eos_ids"] = end_ids(data.tokenizer)
  objective = build_objective(config["objective"], data=data)
  if config["student_rules"]:
    rows = functools.partial(over_rows, row_axes_of(student_rules(config["student_rules"])))
    student = student._replace(apply=rows(student.apply))
    objective = objective._replace(apply=rows(objective.apply))
  elsewhere = None
  if teacher is not None and own_sizes(config):
    teacher, elsewhere = _apart(config, teacher, objective, data)
  program = make(student, objective, tx, teacher=teacher, evaluator=evaluator_of(data), **own)
  program = program._replace(apart=elsewhere)
  if config["on_nonfinite"] not in ON_NONFINITE:
    raise KdjaxError(
      f"config.on_nonfinite = {config['on_nonfinite']!r} does not exist; what does:"
      f" {', '.join(ON_NONFINITE)}"
    )
  if config["on_nonfinite"] == "skip":
    program = skip_nonfinite(program)
  return program, student


def _apart(
  config: Mapping[str, Any], teacher: Teacher, objective: Objective, data: DataSet | TextData
) -> tuple[Teacher, Apart]:
  field, kind, name = "config.teacher.mesh", config["teacher"]["kind"], config["program"]["name"]
  if kind in ("ema", "cached"):
    raise KdjaxError(
      f"{field} puts a teacher that is computed for each batch on devices of its own, and"
      f" config.teacher.kind is {kind!r}; set its sizes to 0"
    )
  if name != "distill":
    raise KdjaxError(
      f"{field}: the program {name!r} asks the teacher inside its step; set its sizes to 0, or lay"
      " the teacher out by config.teacher.rules"
    )
  taps = teacher_taps(objective, teacher)
  headed = is_text(data) and teacher.taps >= HEADED
  held_out = HEADED if headed else teacher.taps & {"logits", "embedding"}
  return apart(teacher, taps, held_out, data.train.read(np.arange(1)) if headed else {})


def _adopting(student: Model, teacher: Teacher | None, data: DataSet) -> Model:
  single = teacher is not None and isinstance(teacher.frozen, ModelVars)
  if not single or "head" not in teacher.taps:
    raise KdjaxError(
      "config.student classifies by its teacher's head, and config.teacher has none to read; take"
      " a model of classes with embeddings, such as clip, of kind 'frozen'"
    )

  def head_of(weights: Any) -> Head:
    batch = {"image": jnp.zeros((1, *data.image_shape))}
    return teacher.apply(weights, (), batch, taps=frozenset({"head"})).head

  return adopting(student, head_of, teacher.frozen)


def _check_start(student: Model, data: DataSet | TextData) -> None:
  own = getattr(student.spec, "start", None)
  if isinstance(data, TextPairs) and own is not None and own != data.start:
    raise KdjaxError(
      f"config.student begins targets with token {own} and config.data with {data.start}; set"
      f" config.data.start = {own}"
    )


def teacher_side(data: DataSet | TextData) -> DataSet | TextData | Vocabulary:
  """The data as the teacher sees them: its own vocabulary, where it has one."""
  return getattr(data, "teacher", None) or data


def is_text(data: DataSet | TextData | Vocabulary) -> bool:
  """Whether these are text rather than images."""
  return isinstance(data, TextData | TextPairs | Vocabulary)


def evaluator_of(data: DataSet | TextData) -> Evaluator:
  """What to evaluate on these data."""
  if isinstance(data, TextPairs) and data.answer_token is not None:
    return with_answers(
      language(data.domains),
      answer_token=data.answer_token,
      source_length=data.sequence_length,
      eos_ids=end_ids(data.tokenizer),
      joined=data.train.joined,
    )
  if is_text(data):
    return language(data.domains)
  if isinstance(data, Trips):
    return drives
  if getattr(data, "places", ()):
    return label_maps
  if getattr(data, "corruptions", ()):
    return corrupted_images(data.corruptions)
  return named_classes(data.novel) if getattr(data, "novel", ()) else classifier
