"""Any config of configs/ cut down to a few steps: --config=tests/faults/short.py:KEY[:VARIANT]."""

import importlib

import ml_collections

STEPS = 4


def get_config(key: str) -> ml_collections.ConfigDict:
  """The config with four steps a run, a checkpoint after each, and little data."""
  name, *variant = key.split(":", 1)
  config = importlib.import_module(f"configs.{name}").get_config(*variant)
  config.unlock()
  config.total_steps = STEPS
  _shorten(config)
  if config.teacher.get("train"):
    config.teacher.train.total_steps = STEPS
    _shorten(config.teacher.train)
  for part in _emulated(config.teacher.get("emulate") or {}):
    part["train"] = {**part.get("train", {}), "total_steps": STEPS}
  if "train" in config.selection:
    config.selection.train = {**config.selection.train, "total_steps": STEPS}
  if config.stages:
    config.stages = tuple(_stage(stage) for stage in config.stages)
  config.baseline = {"objective": {"name": "cross_entropy"}}
  config.samples.prompts = ()
  return config


def _emulated(emulate) -> list:
  """The models of an emulated teacher that are trained."""
  parts = [emulate.get("reference"), emulate.get("target"), *emulate.get("tuned", ())]
  return [part for part in parts if part]


def _stage(stage) -> dict:
  stage = stage.to_dict() if isinstance(stage, ml_collections.ConfigDict) else dict(stage)
  return stage | {"total_steps": STEPS}


def _shorten(config: ml_collections.ConfigDict) -> None:
  config.checkpoint = {**config.get("checkpoint", {}), "every": 1}
  config.eval = {**config.get("eval", {}), "every": STEPS, "log_every": 1}
  if "warmup_steps" in config.get("optimizer", {}):
    config.optimizer.warmup_steps = 1
  if "every" in config.get("domain_weights", {}):
    config.domain_weights.every = 2
  if "validate_every" in config.get("program", {}):
    config.program.validate_every = 1
  if config.get("data", {}).get("max_documents"):
    config.data.max_documents = min(config.data.max_documents, 30)
