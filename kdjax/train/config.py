"""Checks and arithmetic on configs as plain mappings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.resolve import check_type

Config = dict[str, Any]

# Every config has these fields; `configs/base.py` gives each a default.
FIELDS: Mapping[str, Any] = {
  "seed": int,
  "total_steps": int,
  "batch_size": int,
  "mesh": dict,
  "data": dict,
  "student": dict,
  "teacher": dict,
  "objective": dict,
  "program": dict,
  "optimizer": dict,
  "checkpoint": dict,
  "eval": dict,
  "baseline": dict,
  "compare": dict,
}
# These may change between a run and its resumption.
NOT_IDENTITY = ("mesh", "checkpoint", "eval", "compare", "baseline", "teacher")


def check_config(config: Config) -> None:
  """Raises KdjaxError for missing, unknown or mistyped top-level fields and values out of range."""
  for name in config:
    if name not in FIELDS:
      raise KdjaxError(f"config.{name} does not exist; what exists: {', '.join(FIELDS)}")
  for name, kind in FIELDS.items():
    if name not in config:
      raise KdjaxError(f"config.{name} is missing; start from configs/base.py")
    if kind is dict:
      if not isinstance(config[name], Mapping):
        raise KdjaxError(f"config.{name} = {config[name]!r} must have fields of its own")
    else:
      check_type(config[name], kind, f"config.{name}")
  for name in ("total_steps", "batch_size"):
    if config[name] < 1:
      raise KdjaxError(f"config.{name} = {config[name]} must be at least 1")
  for section, name in (("eval", "every"), ("eval", "log_every"), ("checkpoint", "every")):
    value = config[section].get(name)
    if type(value) is not int or value < 1:  # a bool is no int here
      raise KdjaxError(f"config.{section}.{name} = {value!r} must be an int of at least 1")


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
