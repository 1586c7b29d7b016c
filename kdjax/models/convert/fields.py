"""Fields that the configs of several families share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.transformer.spec import Rope

Config = Mapping[str, Any]
Names = Collection[str]

ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}


def activation_of(config: Config, *fields: str) -> str:
  name = next((config[field] for field in fields if config.get(field) is not None), None)
  if name is None:
    raise KeyError(fields[0])
  if name not in ACTIVATIONS:
    raise KdjaxError(f"config.json: activation {name!r} is not supported: {sorted(ACTIVATIONS)}")
  return ACTIVATIONS[name]


def name_of(activation: str) -> str:
  return {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)


def refuse(config: Config, *fields: str) -> None:
  """Raises KdjaxError for a field that is set and that our models have nothing for."""
  for field in fields:
    if config.get(field):
      raise KdjaxError(
        f"config.json: {field} = {config[field]!r} of a {config.get('model_type')!r} model is not"
        " supported; it must be absent or false"
      )


def rope_of(config: Config, kind: str | None = None) -> Rope:
  """The rotation; transformers 5 writes `rope_parameters`, older versions several fields.

  Args:
    config: what config.json holds.
    kind: of the layers, where each kind may have its own.
  """
  given = config.get("rope_parameters") or config.get("rope_scaling") or {}
  nested = [name for name, value in given.items() if isinstance(value, dict)]
  if nested and kind:
    given = given.get(kind) or {}
  elif nested:
    raise KdjaxError(
      f"config.json: rope_parameters of {', '.join(nested)} of a {config['model_type']!r} model are"
      " not supported; wanted one set for all layers"
    )
  if config["model_type"] != "gpt_neox":
    for where in (given, config):
      if where.get("partial_rotary_factor", 1.0) != 1.0:
        refuse({**where, "model_type": config["model_type"]}, "partial_rotary_factor")
  theta = given.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
  share = given.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
  name = given.get("rope_type", given.get("type", "default"))
  if name == "default":
    return Rope(float(theta), float(share))
  if name == "linear":
    return Rope(float(theta), float(share), ("linear", given["factor"]))
  if name == "llama3":
    fields = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    return Rope(float(theta), float(share), ("llama3", *(given[field] for field in fields)))
  raise KdjaxError(
    f"config.json: rope_type {name!r} is not supported; what is: default, linear, llama3"
  )


def rope_parameters(rope: Rope) -> dict[str, Any]:
  out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
  if rope.fraction != 1.0:
    out["partial_rotary_factor"] = rope.fraction
  if rope.scaling:
    kind, factor, *rest = rope.scaling
    out |= {"rope_type": kind, "factor": factor}
    names = "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    out |= dict(zip(names, rest, strict=False))
  return out


def tied_of(config: Config, *, default: bool) -> bool:
  return bool(config.get("tie_word_embeddings", default))
