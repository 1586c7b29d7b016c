"""The models of a teacher that emulates fine-tuning: what `config.teacher.emulate` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.data.base import DataSet
from kdjax.errors import KdjaxError, within
from kdjax.generation import emulated
from kdjax.models.base import Model
from kdjax.resolve import hint
from kdjax.train.build import build_model
from kdjax.train.config import Config

FIELD = "config.teacher.emulate"
FIELDS = ("reference", "tuned", "weights", "nucleus", "target")
PART = ("model", "checkpoint", "train")
# What is emulated: the base, fine-tuned itself. It is only evaluated.
TARGET = "target"


class Part(NamedTuple):
  """One of the models.

  Attributes:
    name: of its row, and of its folder where the job trains it.
    config: the whole config with this model alone as its teacher.
    starts_from: name of the part whose weights it starts from where the job trains it; "" for
      those that its model gives.
  """

  name: str
  config: Config
  starts_from: str


def parts_of(config: Config) -> list[Part]:
  """The base, the reference unless it is the base, the tuned models, and the target if any.

  `config.teacher` itself is the base, as it would be the teacher of kind "frozen". Each of the
  others is a mapping of `model`, `checkpoint` and `train`, as there. A tuned model without `model`
  is the reference, trained further; so is the target of the base.

  Raises:
    KdjaxError: fields that do not exist or are of another type, no tuned model, weights that do not
      fit.
  """
  spec = config["teacher"]["emulate"]
  _check(spec, FIELDS, FIELD)
  for name, kind in (("reference", Mapping), ("tuned", Sequence), ("target", Mapping)):
    if not isinstance(spec.get(name, {} if kind is Mapping else ()), kind):
      told = "a mapping" if kind is Mapping else "a list of mappings"
      raise KdjaxError(f"{FIELD}.{name} = {spec[name]!r} must be {told}")
  if config["teacher"]["count"] != 1:
    raise KdjaxError("config.teacher.count must be 1 where config.teacher.kind = 'emulated'")

  def part(name: str, own: Mapping[str, Any], field: str, starts_from: Part | None) -> Part:
    _check(own, PART, field)
    teacher = dict(config["teacher"]) | {"kind": "frozen", "checkpoint": "", "train": {}}
    if starts_from is not None and "model" not in own:
      own = {"model": starts_from.config["teacher"]["model"]} | dict(own)
      start = starts_from.name
    else:
      start = ""
    return Part(name, config | {"teacher": teacher | dict(own)}, start)

  base = Part("teacher", config | {"teacher": dict(config["teacher"]) | {"kind": "frozen"}}, "")
  parts = [base]
  if spec.get("reference"):
    if "model" not in spec["reference"]:
      raise KdjaxError(f"{FIELD}.reference.model is missing; without `reference` the base is it")
    parts.append(part("reference", spec["reference"], f"{FIELD}.reference", None))
  reference, tuned = parts[-1], spec.get("tuned", ())
  names = ["tuned"] if len(tuned) == 1 else [f"tuned_{i}" for i in range(len(tuned))]
  parts += [
    part(name, own, f"{FIELD}.tuned[{i}]", reference)
    for i, (name, own) in enumerate(zip(names, tuned, strict=True))
  ]
  if spec.get(TARGET):
    parts.append(part(TARGET, spec[TARGET], f"{FIELD}.target", base))
  return parts


def emulated_model(config: Config, data: DataSet) -> Model:
  """The model that all parts but the target make together; see `kdjax.generation.emulated`."""
  spec = config["teacher"]["emulate"]
  parts = {p.name: p for p in parts_of(config) if p.name != TARGET}
  models = {
    name: build_model(part.config["teacher"]["model"], data, f"{FIELD} ({name})")
    for name, part in parts.items()
  }
  tuned = [model for name, model in models.items() if name.startswith("tuned")]
  with within(FIELD):
    return emulated(
      models["teacher"],
      models.get("reference"),
      tuned,
      weights=list(spec.get("weights", (1.0,) * len(tuned))),
      nucleus=spec.get("nucleus"),
    )


def _check(own: Any, known: Sequence[str], field: str) -> None:
  if not isinstance(own, Mapping):
    raise KdjaxError(f"{field} = {own!r} must be a mapping with fields of {', '.join(known)}")
  for name in own:
    if name not in known:
      raise KdjaxError(f"{field}.{name} does not exist{hint(name, known)}")
