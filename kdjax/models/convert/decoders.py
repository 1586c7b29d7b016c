"""Configs of causal language models, read and written."""

from __future__ import annotations

from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert.fields import (
  Config,
  Names,
  activation_of,
  name_of,
  refuse,
  rope_of,
  rope_parameters,
  tied_of,
)
from kdjax.models.transformer.spec import Spec


def read_llama(config: Config, names: Names) -> Spec:
  """Llama, Mistral, Qwen2 and Qwen3: what differs stands in the config or in `model_type`."""
  family = config["model_type"]
  heads = config["num_attention_heads"]
  bias = bool(config.get("attention_bias", False))
  depth = config["num_hidden_layers"]
  window, local = _windows(config, depth)
  return Spec(
    family=family,
    vocab=config["vocab_size"],
    width=config["hidden_size"],
    depth=depth,
    heads=heads,
    kv_heads=config.get("num_key_value_heads") or heads,
    head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    norm_eps=config["rms_norm_eps"],
    activation=activation_of(config, "hidden_act"),
    rope=rope_of(config),
    window=window,
    local=local,
    qk_norm=family == "qwen3",
    qkv_bias=bias or family == "qwen2",
    out_bias=bias,
    mlp_bias=bool(config.get("mlp_bias", False)),
    tied=tied_of(config, default=False),
  )


def _windows(config: Config, depth: int) -> tuple[int | None, tuple[bool, ...]]:
  """(window, which layers have it)."""
  family = config["model_type"]
  # What a config leaves out is the default of its family in transformers.
  window = config.get("sliding_window", None if family == "llama" else 4096)
  if window is None or not config.get("use_sliding_window", family not in ("qwen2", "qwen3")):
    return None, ()
  if family == "mistral":
    refuse(config, "layer_types")
  kinds = config.get("layer_types")
  if kinds is None and family in ("qwen2", "qwen3"):
    first = config.get("max_window_layers", 28)
    kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
  if kinds is None:
    return window, (True,) * depth
  if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
    raise KdjaxError(f"config.json: layer_types holds {sorted(unknown)}, which is not supported")
  local = tuple(kind == "sliding_attention" for kind in kinds)
  return (window, local) if any(local) else (None, ())


def _layer_types(spec: Spec) -> list[str]:
  return ["sliding_attention" if local else "full_attention" for local in spec.is_local]


def _decoder_sizes(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "num_key_value_heads": spec.kv_heads,
    "head_dim": spec.head_dim,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "rms_norm_eps": spec.norm_eps,
    "tie_word_embeddings": spec.tied,
  }


def write_llama(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "hidden_act": name_of(spec.activation),
    "rope_parameters": rope_parameters(spec.rope),
  }
  if spec.family == "llama":
    own |= {"attention_bias": spec.out_bias, "mlp_bias": spec.mlp_bias}
  if spec.family == "mistral":
    own |= {"sliding_window": spec.window}
  if spec.family in ("qwen2", "qwen3"):
    local = any(spec.is_local)
    own |= {"use_sliding_window": local, "sliding_window": spec.window}
    own |= {"layer_types": _layer_types(spec)}
    if spec.family == "qwen3":
      own |= {"attention_bias": spec.out_bias}
  return _decoder_sizes(spec) | own


def read_gemma(config: Config, names: Names) -> Spec:
  refuse(config, "use_bidirectional_attention")
  depth, width = config["num_hidden_layers"], config["hidden_size"]
  third = config["model_type"] == "gemma3_text"
  kinds = config.get("layer_types")
  if kinds is None:  # every sixth layer, or every second one, sees everything
    step = config.get("sliding_window_pattern", 6) if third else 2
    kinds = ["full_attention" if (i + 1) % step == 0 else "sliding_attention" for i in range(depth)]
  window, local = _windows({**config, "layer_types": kinds}, depth)
  if third:
    rope = rope_of({"rope_theta": 1e6, **config}, "full_attention")
    near = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    near |= {key: config[key] for key in ("model_type", "rope_parameters") if config.get(key)}
    local_rope = rope_of(near, "sliding_attention")  # `rope_scaling` is of the others alone
  else:
    rope, local_rope = rope_of(config), None
  return Spec(
    family=config["model_type"],
    vocab=config["vocab_size"],
    width=width,
    depth=depth,
    heads=config["num_attention_heads"],
    kv_heads=config["num_key_value_heads"],
    head_dim=config["head_dim"],
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    block="sandwich",
    norm_eps=config["rms_norm_eps"],
    activation=activation_of(config, "hidden_activation", "hidden_act"),
    rope=rope,
    local_rope=local_rope,
    window=window,
    local=local,
    qk_norm=third,
    attention_scale=config["query_pre_attn_scalar"] ** -0.5,
    attention_softcap=config.get("attn_logit_softcapping", None if third else 50.0),
    logit_softcap=config.get("final_logit_softcapping", None if third else 30.0),
    embed_scale=width**0.5,
    qkv_bias=bool(config.get("attention_bias", False)),
    out_bias=bool(config.get("attention_bias", False)),
    tied=tied_of(config, default=True),
  )


def write_gemma(spec: Spec) -> dict[str, Any]:
  scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
  scalar = round(scale**-2, 6)  # transformers takes an integer only
  rope = rope_parameters(spec.rope)
  if spec.local_rope is not None:
    rope = {"full_attention": rope, "sliding_attention": rope_parameters(spec.local_rope)}
  return _decoder_sizes(spec) | {
    "hidden_activation": name_of(spec.activation),
    "rope_parameters": rope,
    "sliding_window": spec.window,
    "layer_types": _layer_types(spec),
    "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
    "attn_logit_softcapping": spec.attention_softcap,
    "final_logit_softcapping": spec.logit_softcap,
    "attention_bias": spec.qkv_bias,
  }


def read_gpt2(config: Config, names: Names) -> Spec:
  width, heads = config["n_embd"], config["n_head"]
  refuse(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
  return Spec(
    family="gpt2",
    vocab=config["vocab_size"],
    width=width,
    depth=config["n_layer"],
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=config.get("n_inner") or 4 * width,
    max_positions=config["n_positions"],
    norm="layer",
    norm_eps=config["layer_norm_epsilon"],
    activation=activation_of(config, "activation_function"),
    gated=False,
    position="learned",
    attention_scale=None if config.get("scale_attn_weights", True) else 1.0,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=tied_of(config, default=True),
  )


def write_gpt2(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "n_embd": spec.width,
    "n_layer": spec.depth,
    "n_head": spec.heads,
    "n_inner": spec.mlp_width,
    "n_positions": spec.max_positions,
    "layer_norm_epsilon": spec.norm_eps,
    "activation_function": {"gelu_tanh": "gelu_new"}.get(spec.activation, spec.activation),
    "scale_attn_weights": spec.attention_scale is None,
    "tie_word_embeddings": spec.tied,
  }


def read_gpt_neox(config: Config, names: Names) -> Spec:
  width, heads = config["hidden_size"], config["num_attention_heads"]
  rope = rope_of({"rotary_pct": 0.25, **config})
  bias = bool(config.get("attention_bias", True))
  return Spec(
    family="gpt_neox",
    vocab=config["vocab_size"],
    width=width,
    depth=config["num_hidden_layers"],
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    block="parallel" if config.get("use_parallel_residual", True) else "pre",
    norm="layer",
    norm_eps=config["layer_norm_eps"],
    activation=activation_of(config, "hidden_act"),
    gated=False,
    rope=rope,
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    tied=tied_of(config, default=False),
  )


def write_gpt_neox(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "layer_norm_eps": spec.norm_eps,
    "hidden_act": name_of(spec.activation),
    "use_parallel_residual": spec.block == "parallel",
    "rope_parameters": rope_parameters(spec.rope) | {"partial_rotary_factor": spec.rope.fraction},
    "attention_bias": spec.qkv_bias,
    "tie_word_embeddings": spec.tied,
  }
