"""GGUF files, shown as the Hugging Face checkpoints they were made from."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.quants import dequantize

from kdjax.errors import KdjaxError
from kdjax.gguf_header import check_header
from kdjax.models.convert import safetensor
from kdjax.models.convert.checkpoint import Checkpoint, Stored
from kdjax.models.convert.gguf_config import ARCHITECTURES, config_of

_PLAIN = {
  Type.F32: np.dtype(np.float32),
  Type.F16: np.dtype(np.float16),
  Type.BF16: np.dtype(ml_dtypes.bfloat16),
}
_QUANTISED = {Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q6_K}
_CHUNK = 1 << 20  # values dequantised at a time, which bounds the scratch memory

_DECODER = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "blk.attn_norm": "input_layernorm",
  "blk.attn_q": "self_attn.q_proj",
  "blk.attn_k": "self_attn.k_proj",
  "blk.attn_v": "self_attn.v_proj",
  "blk.attn_output": "self_attn.o_proj",
  "blk.ffn_norm": "post_attention_layernorm",
  "blk.ffn_gate": "mlp.gate_proj",
  "blk.ffn_up": "mlp.up_proj",
  "blk.ffn_down": "mlp.down_proj",
}
_QK_NORM = {"blk.attn_q_norm": "self_attn.q_norm", "blk.attn_k_norm": "self_attn.k_norm"}
_GEMMA = _DECODER | {
  "blk.post_attention_norm": "post_attention_layernorm",
  "blk.ffn_norm": "pre_feedforward_layernorm",
  "blk.post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2 = {
  "token_embd": "transformer.wte",
  "position_embd": "transformer.wpe",
  "output_norm": "transformer.ln_f",
  "output": "lm_head",
  "blk.attn_norm": "ln_1",
  "blk.attn_qkv": "attn.c_attn",
  "blk.attn_output": "attn.c_proj",
  "blk.ffn_norm": "ln_2",
  "blk.ffn_up": "mlp.c_fc",
  "blk.ffn_down": "mlp.c_proj",
}
_NAMES = {
  "llama": _DECODER,
  "qwen2": _DECODER,
  "qwen3": _DECODER | _QK_NORM,
  "gemma2": _GEMMA,
  "gemma3": _GEMMA | _QK_NORM,
  "gpt2": _GPT2,
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"  # no weight: it belongs to the config


class _Raw(NamedTuple):
  """A tensor as it lies in the file; `shape` is row-major, as in NumPy."""

  path: Path
  shape: tuple[int, ...]
  kind: Type
  offset: int
  size: int  # bytes


def open_gguf(path: Path) -> Checkpoint:
  """Opens a GGUF file under the names, layouts and config fields of transformers.

  llama.cpp stores some tensors in another form than transformers, and this is undone: the order
  of the rows of Llama's queries and keys, the 1 added to Gemma's norms, the transposed matrices of
  GPT-2.

  Raises:
    KdjaxError: a damaged file; an architecture, a tensor type or a tensor that is not supported.
  """
  metadata, raw = _read_header(path)
  architecture = metadata.get("general.architecture")
  if architecture not in ARCHITECTURES:
    raise KdjaxError(
      f"{path}: the architecture {architecture!r} is not supported in GGUF; what is:"
      f" {', '.join(ARCHITECTURES)}. Give the model as a Hugging Face folder"
    )
  if metadata.get("split.count", 1) > 1:
    raise KdjaxError(f"{path} is one part of a split GGUF file; merge the parts and give the whole")
  factors = raw.pop(ROPE_FACTORS, None)
  _check_types(path, raw)
  renamed = {name: _rename(architecture, name) for name in raw}
  if unknown := [name for name, theirs in renamed.items() if theirs is None]:
    raise KdjaxError(
      f"{path}: {len(unknown)} tensors are not part of {architecture!r} as supported here:"
      f" {', '.join(unknown[:8])}"
    )
  config = config_of(
    path,
    architecture,
    metadata,
    {theirs: raw[name].shape for name, theirs in renamed.items()},
    None if factors is None else _read_rows(factors, 0, factors.shape[0]),
  )
  tensors = {
    theirs: _stored(raw[name], _layout(architecture, name, config))
    for name, theirs in renamed.items()
  }
  return Checkpoint(path, config, tensors)


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, _Raw]]:
  check_header(path)
  try:
    reader = GGUFReader(path)
    metadata = {
      name: field.contents()
      for name, field in reader.fields.items()
      # The token lists are long, and the tokenizer is another reader's matter.
      if not (
        name.startswith("tokenizer.") and name.endswith((".tokens", ".merges", "_type", ".scores"))
      )
    }
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
    raise KdjaxError(f"{path} is not a whole GGUF file ({error}); download it again") from None
  # Only places are kept: the reader's memory map goes with it.
  raw = {
    tensor.name: _Raw(
      path,
      tuple(int(n) for n in reversed(tensor.shape)),
      tensor.tensor_type,
      int(tensor.data_offset),
      int(tensor.n_bytes),
    )
    for tensor in reader.tensors
  }
  return metadata, raw


def _check_types(path: Path, raw: dict[str, _Raw]) -> None:
  supported = _QUANTISED | set(_PLAIN)
  if other := [f"{name} ({t.kind.name})" for name, t in raw.items() if t.kind not in supported]:
    raise KdjaxError(
      f"{path}: {len(other)} tensors are of a type that is not supported: {', '.join(other[:8])};"
      f" what is: {', '.join(sorted(kind.name for kind in supported))}"
    )


def _rename(architecture: str, name: str) -> str | None:
  match = _NAME.fullmatch(name)
  if match is None:
    return None
  layer, part, suffix = match.groups()
  theirs = _NAMES[architecture].get(part if layer is None else f"blk.{part}")
  if theirs is None:
    return None
  if layer is not None:
    stack = "transformer.h" if architecture == "gpt2" else "model.layers"
    theirs = f"{stack}.{int(layer)}.{theirs}"
  return f"{theirs}.{suffix}"


Layout = Callable[[np.ndarray], np.ndarray]


def _layout(architecture: str, name: str, config: dict[str, Any]) -> Layout | None:
  """From the layout of llama.cpp to that of transformers; None where they agree."""
  if architecture == "llama" and (found := re.search(r"\.attn_([qk])\.", name)):
    heads = config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
    return functools.partial(_unpair, heads=heads)
  if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
    return lambda array: array - np.float32(1)
  if architecture == "gpt2" and re.search(
    r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name
  ):
    return np.transpose
  return None


def _unpair(array: np.ndarray, *, heads: int) -> np.ndarray:
  """Two coordinates that rotate together are neighbours in the file, half a head apart in ours."""
  rows = array.reshape(heads, -1, 2, *array.shape[1:])
  return rows.swapaxes(1, 2).reshape(array.shape)


def _stored(raw: _Raw, layout: Layout | None) -> Stored:
  dtype = _PLAIN.get(raw.kind, np.dtype(np.float32))
  if layout is None:
    return Stored(raw.shape, dtype, functools.partial(_read_rows, raw))

  def rows(start: int, stop: int) -> np.ndarray:
    return layout(_read_rows(raw, 0, raw.shape[0]))[start:stop]

  shape = raw.shape[::-1] if layout is np.transpose else raw.shape
  return Stored(shape, dtype, rows)


def _read_rows(raw: _Raw, start: int, stop: int) -> np.ndarray:
  """Rows of a tensor, dequantised to float32 where it is quantised."""
  count, row = raw.shape[0], raw.shape[1:]
  if raw.kind in _PLAIN:
    place = safetensor.Place(raw.shape, _PLAIN[raw.kind], raw.offset)
    return safetensor.read_rows(raw.path, place, start, stop)
  size = raw.size // count
  out = np.empty((stop - start, *row), np.float32)
  step = max(1, _CHUNK // math.prod(row))
  for first in range(start, stop, step):
    last = min(first + step, stop)
    data = safetensor.read_bytes(raw.path, raw.offset + first * size, (last - first) * size)
    out[first - start : last - start] = dequantize(data.reshape(last - first, size), raw.kind)
  return out
