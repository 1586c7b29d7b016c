"""GGUF files of small models, written as llama.cpp's converter would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from kdjax.models.convert import Checkpoint

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def _paired(array: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp rotates neighbouring rows, transformers rows half a head apart."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)


def converted(name: str, array: np.ndarray, config: dict[str, Any], architecture: str):
  """A tensor in llama.cpp's layout; `name` is that of transformers."""
  if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
    field = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
    return _paired(array, config[field])
  if architecture.startswith("gemma") and "norm" in name:
    return array + np.float32(1)
  if architecture == "gpt2" and array.ndim == 2 and ".h." in name:
    return np.ascontiguousarray(array.T)
  return array


def write_gguf(path: Path, source: Checkpoint, extra: dict[str, Any] | None = None) -> Path:
  """Writes a Hugging Face checkpoint as float32 GGUF.

  Args:
    path: of the file.
    source: an open checkpoint.
    extra: further metadata, without the architecture's prefix; lists become arrays.
  """
  config = source.config
  architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
  kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
  depth = config.get("num_hidden_layers", config.get("n_layer"))
  names = gguf.get_tensor_name_map(kind, depth)
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(depth)
  if architecture == "gpt2":
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_context_length(config["n_positions"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
  else:
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if head_dim := config.get("head_dim"):
      writer.add_key_length(head_dim)
      writer.add_value_length(head_dim)
  for key, value in (extra or {}).items():
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    add[type(value)](f"{architecture}.{key}", value)
  for name in sorted(source.names):
    stem, suffix = name.rsplit(".", 1)
    theirs = f"{names.get_name(stem)}.{suffix}"
    writer.add_tensor(theirs, converted(name, source.read(name), config, architecture))
  return finish(writer)


def finish(writer: gguf.GGUFWriter) -> Path:
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return Path(writer.path)
