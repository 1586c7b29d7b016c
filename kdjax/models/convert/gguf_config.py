"""The fields of a Hugging Face config.json, made from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.errors import KdjaxError

Shapes = Mapping[str, tuple[int, ...]]
_REQUIRED = object()


class _Metadata:
  """The values of one file, by key without the architecture's prefix."""

  def __init__(self, path: Path, architecture: str, values: Mapping[str, Any]):
    self.path, self.architecture, self.values = path, architecture, values

  def get(self, key: str, default: Any = _REQUIRED) -> Any:
    name = f"{self.architecture}.{key}"
    value = self.values.get(name, default)
    if value is _REQUIRED:
      raise KdjaxError(f"{self.path} lacks the metadata {name!r}, which its architecture needs")
    # Floats have 32 bits in the file: 1e-5 should not become 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value

  def number(self, key: str, default: Any = _REQUIRED) -> Any:
    """A value that is the same for all layers."""
    value = self.get(key, default)
    if isinstance(value, list):
      if len(set(value)) != 1:
        raise KdjaxError(f"{self.path}: {key} differs from layer to layer, which is not supported")
      return value[0]
    return value


def config_of(
  path: Path,
  architecture: str,
  values: Mapping[str, Any],
  shapes: Shapes,
  rope_factors: np.ndarray | None,
) -> dict[str, Any]:
  """What config.json would hold.

  Args:
    path: of the file, for messages.
    architecture: a key of `ARCHITECTURES`.
    values: the file's metadata.
    shapes: of its tensors, under their Hugging Face names.
    rope_factors: the tensor rope_freqs, by which each frequency is divided, where the file has it.
  """
  metadata = _Metadata(path, architecture, values)
  table = "transformer.wte.weight" if architecture == "gpt2" else "model.embed_tokens.weight"
  if table not in shapes:
    raise KdjaxError(f"{path} has no token embedding; it is no whole language model")
  config = {
    "vocab_size": shapes[table][0],
    "tie_word_embeddings": "lm_head.weight" not in shapes,
    **ARCHITECTURES[architecture](metadata, shapes),
  }
  if rope_factors is not None:
    if config.get("rope_scaling"):
      raise KdjaxError(f"{path} has both rope_freqs and rope.scaling; one of them is supported")
    config["rope_scaling"] = _llama3_scaling(path, rope_factors, config)
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
    if (token := values.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
      config[f"{ours}_token_id"] = token
  return config


def _decoder(metadata: _Metadata) -> dict[str, Any]:
  """The fields that all but GPT-2 share."""
  width, heads = metadata.get("embedding_length"), metadata.number("attention.head_count")
  head_dim = metadata.get("attention.key_length", width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (other := metadata.get(key, head_dim)) != head_dim:
      raise KdjaxError(
        f"{metadata.path}: {metadata.architecture}.{key} = {other} and heads of width {head_dim};"
        " only equal ones are supported"
      )
  return {
    "hidden_size": width,
    "intermediate_size": metadata.number("feed_forward_length"),
    "num_hidden_layers": metadata.get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": metadata.number("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "max_position_embeddings": metadata.get("context_length"),
    "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon"),
    "rope_theta": metadata.get("rope.freq_base", 10000.0),
    "rope_scaling": _scaling(metadata),
  }


def _scaling(metadata: _Metadata) -> dict[str, Any] | None:
  kind = metadata.get("rope.scaling.type", "none")
  if kind == "none":
    return None
  if kind == "linear":
    return {"rope_type": "linear", "factor": metadata.get("rope.scaling.factor")}
  raise KdjaxError(
    f"{metadata.path}: {metadata.architecture}.rope.scaling.type = {kind!r} is not supported;"
    " what is: none, linear"
  )


def _llama3_scaling(path: Path, factors: np.ndarray, config: Mapping[str, Any]) -> dict[str, Any]:
  """The scaling of Llama 3.1 to 3.3, of which a file keeps the resulting factors alone.

  The slowest frequency has the full factor; the other three constants are those of all these
  models. They are right if they give the file's factors again.
  """
  low, high, original = 1.0, 4.0, 8192
  factor = float(factors[-1])
  exponents = np.arange(0, config["head_dim"], 2) / config["head_dim"]
  turns = original * config["rope_theta"] ** -exponents / (2 * np.pi)  # within the old context
  kept = np.clip((turns - low) / (high - low), 0, 1)
  again = 1 / (kept + (1 - kept) / factor)
  if factors.shape != again.shape or not np.allclose(factors, again, rtol=1e-3):
    raise KdjaxError(
      f"{path}: its rope_freqs are not those of Llama 3.1 (a context of {original} stretched by one"
      " factor), and no other is supported. Give the model as a Hugging Face folder"
    )
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": low,
    "high_freq_factor": high,
    "original_max_position_embeddings": original,
  }


def _llama(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  """Llama, and Mistral, which llama.cpp gives the same name."""
  config = _decoder(metadata) | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
    "mlp_bias": "model.layers.0.mlp.up_proj.bias" in shapes,
  }
  if window := metadata.get("attention.sliding_window", 0):
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    config["sliding_window"] = window
  return config


def _qwen2(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  own = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu"}
  return _decoder(metadata) | own


def _qwen3(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  own = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"}
  return _decoder(metadata) | own | {"attention_bias": False}


def _gemma(metadata: _Metadata, *, largest: int, pattern: int) -> dict[str, Any]:
  """Fields of both.

  Args:
    metadata: of the file.
    largest: depth of the 27B model, whose scores are scaled by hidden_size / heads and not by the
      width of a head. No key of the file tells this.
    pattern: each such layer sees everything, unless the file says otherwise.
  """
  config = _decoder(metadata)
  depth, width, heads = (
    config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
  )
  pattern = metadata.get("attention.sliding_window_pattern", pattern)
  if not isinstance(pattern, list):
    pattern = [(i + 1) % pattern != 0 for i in range(depth)]
  return config | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": width // heads if depth == largest else config["head_dim"],
    "layer_types": ["sliding_attention" if x else "full_attention" for x in pattern],
  }


def _gemma2(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  return _gemma(metadata, largest=46, pattern=2) | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "sliding_window": metadata.get("attention.sliding_window", 4096),
    "attn_logit_softcapping": metadata.get("attn_logit_softcapping", 50.0),
    "final_logit_softcapping": metadata.get("final_logit_softcapping", 30.0),
  }


def _gemma3(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  return _gemma(metadata, largest=62, pattern=6) | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "sliding_window": metadata.get("attention.sliding_window"),
    "rope_theta": metadata.get("rope.freq_base", 1e6),
    "rope_local_base_freq": metadata.get("rope.freq_base_swa", 1e4),
    "final_logit_softcapping": metadata.get("final_logit_softcapping", None),
  }


def _gpt2(metadata: _Metadata, shapes: Shapes) -> dict[str, Any]:
  width = metadata.get("embedding_length")
  return {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": width,
    "n_layer": metadata.get("block_count"),
    "n_head": metadata.number("attention.head_count"),
    "n_inner": metadata.number("feed_forward_length", 4 * width),
    "n_positions": metadata.get("context_length"),
    "layer_norm_epsilon": metadata.get("attention.layer_norm_epsilon"),
    "activation_function": "gelu_new",
  }


ARCHITECTURES: dict[str, Callable[[_Metadata, Shapes], dict[str, Any]]] = {
  "llama": _llama,
  "qwen2": _qwen2,
  "qwen3": _qwen3,
  "gemma2": _gemma2,
  "gemma3": _gemma3,
  "gpt2": _gpt2,
}
