"""Checks and arithmetic on configs as plain mappings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.resolve import check_type, hint
from kdjax.train.timing import profile_range

Config = dict[str, Any]

# Every config has these fields; `configs/base.py` gives each a default. The fields of a `dict` are
# checked where they are read: most are arguments of the function that it names.
FIELDS: Mapping[str, Any] = {
  "seed": int,
  "total_steps": int,
  "batch_size": int,
  "on_nonfinite": str,
  "profile": str,
  "mesh": {"data": int, "fsdp": int, "sequence": int, "tensor": int},
  "data": dict,
  "domain_weights": dict,
  "selection": dict,
  "capacity_gap": dict,
  "leaderboard": dict,
  "teacher_hacking": dict,
  "student": dict,
  "student_rules": dict,
  "optimizer_rules": dict,
  "teacher": {
    "kind": str,
    "model": dict,
    "checkpoint": None,  # a folder or several
    "fine_tune": bool | None,
    "count": int,
    "combine": str,
    "temperature": float,
    "dtype": str | None,
    "rules": dict,
    "mesh": {"data": int, "fsdp": int, "sequence": int, "tensor": int},
    "decay": float,
    "cache": str,
    "store": dict,
    "emulate": dict,
    "train": dict,
  },
  "objective": dict,
  "program": dict,
  "optimizer": dict,
  "checkpoint": {"every": int, "keep_last": int, "keep_best": int},
  "stages": None,  # checked in kdjax/train/stages.py
  "eval": {
    "every": int,
    "batch_size": int,
    "log_every": int,
    "best_metric": str,
    "higher_is_better": bool,
  },
  "samples": {"prompts": list, "max_new_tokens": int},
  "baseline": dict,
  "compare": {
    "title": str,
    "names": {"baseline": str, "method": str},
    "train_baseline": bool,
    "vectorize": bool,
  },
}
AT_LEAST = {
  "seed": 0,
  "total_steps": 1,
  "batch_size": 1,
  "teacher.count": 1,
  "checkpoint.every": 1,
  "checkpoint.keep_best": 0,
  "eval.every": 1,
  "eval.batch_size": 1,
  "eval.log_every": 1,
  "samples.max_new_tokens": 1,
}
# These may change between a run and its resumption.
NOT_IDENTITY = (
  "mesh",
  "student_rules",
  "optimizer_rules",
  "on_nonfinite",
  "profile",
  "checkpoint",
  "eval",
  "compare",
  "baseline",
  "teacher",
  "samples",
  "capacity_gap",
  "leaderboard",
  "stages",
)


def check_config(config: Config) -> None:
  """Raises KdjaxError for fields that are missing, unknown, of the wrong type or out of range."""
  # A config without a teacher says so with an empty mapping.
  _check_fields(config, FIELDS if config.get("teacher") else FIELDS | {"teacher": dict}, "config")
  profile_range(config["profile"], config["total_steps"])
  names = config["compare"]["names"]
  # Rows of a table, and folders beside that of the teacher.
  plain = all(re.fullmatch(r"[\w-]+", name) for name in names.values())
  if not plain or len({"teacher", *names.values()}) < 3:
    raise KdjaxError(
      f"config.compare.names = {dict(names)} must be two different names of letters, digits, _ and"
      " -, neither of them 'teacher'"
    )


def _check_fields(values: Any, fields: Mapping[str, Any], path: str) -> None:
  _check_mapping(values, path)
  for name in values:
    if name not in fields:
      raise KdjaxError(f"{path}.{name} does not exist{hint(name, fields)}")
  for name, kind in fields.items():
    field = f"{path}.{name}"
    if name not in values:
      raise KdjaxError(f"{field} is missing; start from configs/base.py")
    value = values[name]
    if kind is dict:
      _check_mapping(value, field)
    elif isinstance(kind, Mapping):
      _check_fields(value, kind, field)
    else:
      check_type(value, kind, field)
      least = AT_LEAST.get(field.removeprefix("config."))
      if least is not None and value < least:
        raise KdjaxError(f"{field} = {value} must be at least {least}")


def _check_mapping(value: Any, path: str) -> None:
  if not isinstance(value, Mapping):
    raise KdjaxError(f"{path} = {value!r} must have fields of its own")


def merge(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
  """The config with overrides put in, mapping by mapping.

  An override that has a `name` replaces its mapping whole: another function takes other arguments.
  """
  out = dict(config)
  for key, value in overrides.items():
    if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and "name" not in value:
      out[key] = merge(out[key], value)
    else:
      out[key] = value
  return out


def identity(config: Mapping[str, Any]) -> Config:
  """What makes a run the run that it is, as JSON: everything that changes its numbers."""
  kept = {name: value for name, value in config.items() if name not in NOT_IDENTITY}
  return json.loads(json.dumps(kept))


def differences(saved: Any, current: Any, path: str = "config") -> list[str]:
  """The fields in which two JSON values differ, each as "path: saved X, now Y"."""
  if isinstance(saved, Mapping) and isinstance(current, Mapping):
    return [
      line
      for key in sorted(set(saved) | set(current))
      for line in differences(saved.get(key), current.get(key), f"{path}.{key}")
    ]
  return [] if saved == current else [f"{path}: saved {saved!r}, now {current!r}"]
