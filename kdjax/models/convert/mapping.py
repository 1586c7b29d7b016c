"""Which tensor of a Hugging Face checkpoint is which of our parameters, family by family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdjax.models.convert import clip, images
from kdjax.models.convert.layouts import (
  DENSE,
  DENSE_OUT,
  FROM_ONE,
  SAME,
  VECTOR,
  Entry,
  Layout,
  Shape,
  conv1d,
)
from kdjax.models.convert.segformer import segformer_entries
from kdjax.models.transformer.spec import Seq2SeqSpec, Spec

# GPT-2: queries, keys and values side by side, in that order.
_GPT2_QKV = Layout(
  lambda array, shapes: tuple(
    part.reshape(shape) for part, shape in zip(np.split(array, 3, axis=-1), shapes, strict=True)
  ),
  lambda *parts: np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=-1),
)
_GPT2_QKV_BIAS = Layout(
  _GPT2_QKV.read, lambda *parts: np.concatenate([p.reshape(-1) for p in parts])
)


def _read_neox(array: np.ndarray, shapes: Sequence[Shape]) -> tuple[np.ndarray, ...]:
  """GPT-NeoX: head by head, queries, keys and values of each side by side."""
  heads, size = shapes[0][-2:]
  parts = array.reshape(heads, 3, size, *array.shape[1:])
  # A weight is [out, in] and ours [in, head, size]; a bias has no input axis.
  return tuple(np.moveaxis(parts[:, i], 2, 0) if array.ndim == 2 else parts[:, i] for i in range(3))


def _write_neox(*parts: np.ndarray) -> np.ndarray:
  if parts[0].ndim == 2:
    return np.stack(parts, axis=1).reshape(-1)
  stacked = np.stack([np.moveaxis(part, 0, 2) for part in parts], axis=1)
  return stacked.reshape(-1, stacked.shape[-1])


_NEOX_QKV = Layout(_read_neox, _write_neox)


def entries_of(spec: Any) -> list[Entry]:
  """The tensors of a checkpoint of this spec."""
  return ENTRIES[spec.family](spec)


def _linear(ours: str, theirs: str, *, bias: bool, layout: Layout = DENSE) -> list[Entry]:
  out = [Entry(f"{theirs}.weight", (f"{ours}/kernel",), layout)]
  return out + [Entry(f"{theirs}.bias", (f"{ours}/bias",), VECTOR)] if bias else out


def _norm(ours: str, theirs: str, spec: Spec, layout: Layout = SAME) -> list[Entry]:
  out = [Entry(f"{theirs}.weight", (f"{ours}/scale",), layout)]
  return out + [Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)] if spec.norm == "layer" else out


def _kernel_of_head(theirs: str, spec: Spec) -> list[Entry]:
  return [] if spec.tied else [Entry(theirs, ("vocabulary/kernel",), DENSE)]


BLOCK = "stack/blocks"


def _llama(spec: Spec) -> list[Entry]:
  gemma = spec.family.startswith("gemma")
  scale = FROM_ONE if gemma else SAME
  layer, attention = "model.layers.{i}", "model.layers.{i}.self_attn"
  out = [Entry("model.embed_tokens.weight", ("embed/tokens",), SAME)]
  for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
    out += _linear(f"{BLOCK}/attention/{ours}", f"{attention}.{theirs}", bias=spec.qkv_bias)
  out += _linear(
    f"{BLOCK}/attention/out", f"{attention}.o_proj", bias=spec.out_bias, layout=DENSE_OUT
  )
  if spec.qk_norm:
    for side in ("query", "key"):
      theirs = f"{attention}.{side[0]}_norm"
      out += _norm(f"{BLOCK}/attention/{side}_norm", theirs, spec, scale)
  for name in ("gate", "up", "down"):
    out += _linear(f"{BLOCK}/mlp/{name}", f"{layer}.mlp.{name}_proj", bias=spec.mlp_bias)
  norms = {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
  if gemma:
    norms |= {
      "norm_attention_out": "post_attention_layernorm",
      "norm_mlp": "pre_feedforward_layernorm",
      "norm_mlp_out": "post_feedforward_layernorm",
    }
  for ours, theirs in norms.items():
    out += _norm(f"{BLOCK}/{ours}", f"{layer}.{theirs}", spec, scale)
  out += _norm("stack/norm", "model.norm", spec, scale)
  return out + _kernel_of_head("lm_head.weight", spec)


def _gpt2(spec: Spec) -> list[Entry]:
  layer = "transformer.h.{i}"
  kernels = tuple(f"{BLOCK}/attention/{name}/kernel" for name in ("query", "key", "value"))
  biases = tuple(f"{BLOCK}/attention/{name}/bias" for name in ("query", "key", "value"))
  return [
    Entry("transformer.wte.weight", ("embed/tokens",), SAME),
    Entry("transformer.wpe.weight", ("embed/positions",), SAME),
    Entry(f"{layer}.attn.c_attn.weight", kernels, _GPT2_QKV),
    Entry(f"{layer}.attn.c_attn.bias", biases, _GPT2_QKV_BIAS),
    *_linear(f"{BLOCK}/attention/out", f"{layer}.attn.c_proj", bias=True, layout=conv1d(2)),
    *_linear(f"{BLOCK}/mlp/up", f"{layer}.mlp.c_fc", bias=True, layout=conv1d(1)),
    *_linear(f"{BLOCK}/mlp/down", f"{layer}.mlp.c_proj", bias=True, layout=conv1d(1)),
    *_norm(f"{BLOCK}/norm_attention", f"{layer}.ln_1", spec),
    *_norm(f"{BLOCK}/norm_mlp", f"{layer}.ln_2", spec),
    *_norm("stack/norm", "transformer.ln_f", spec),
    *_kernel_of_head("lm_head.weight", spec),
  ]


def _gpt_neox(spec: Spec) -> list[Entry]:
  layer = "gpt_neox.layers.{i}"
  fused = f"{layer}.attention.query_key_value"
  paths = [f"{BLOCK}/attention/{name}" for name in ("query", "key", "value")]
  out = [
    Entry("gpt_neox.embed_in.weight", ("embed/tokens",), SAME),
    Entry(f"{fused}.weight", tuple(f"{path}/kernel" for path in paths), _NEOX_QKV),
    *_linear(
      f"{BLOCK}/attention/out", f"{layer}.attention.dense", bias=spec.out_bias, layout=DENSE_OUT
    ),
    *_linear(f"{BLOCK}/mlp/up", f"{layer}.mlp.dense_h_to_4h", bias=True),
    *_linear(f"{BLOCK}/mlp/down", f"{layer}.mlp.dense_4h_to_h", bias=True),
    *_norm(f"{BLOCK}/norm_attention", f"{layer}.input_layernorm", spec),
    *_norm(f"{BLOCK}/norm_mlp", f"{layer}.post_attention_layernorm", spec),
    *_norm("stack/norm", "gpt_neox.final_layer_norm", spec),
    *_kernel_of_head("embed_out.weight", spec),
  ]
  if spec.qkv_bias:
    out.append(Entry(f"{fused}.bias", tuple(f"{path}/bias" for path in paths), _NEOX_QKV))
  return out


def _bert(spec: Spec) -> list[Entry]:
  # Without a head the checkpoint is that of the bare encoder, whose names have no prefix.
  prefix = f"{spec.family}." if spec.head else ""
  embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
  attention = f"{layer}.attention"
  out = [
    Entry(f"{embeddings}.word_embeddings.weight", ("embed/tokens",), SAME),
    Entry(f"{embeddings}.position_embeddings.weight", ("embed/positions",), SAME),
    Entry(f"{embeddings}.token_type_embeddings.weight", ("embed/types",), SAME),
    *_norm("embed/norm", f"{embeddings}.LayerNorm", spec),
  ]
  for name in ("query", "key", "value"):
    out += _linear(f"{BLOCK}/attention/{name}", f"{attention}.self.{name}", bias=True)
  out += [
    *_linear(f"{BLOCK}/attention/out", f"{attention}.output.dense", bias=True, layout=DENSE_OUT),
    *_norm(f"{BLOCK}/norm_attention", f"{attention}.output.LayerNorm", spec),
    *_linear(f"{BLOCK}/mlp/up", f"{layer}.intermediate.dense", bias=True),
    *_linear(f"{BLOCK}/mlp/down", f"{layer}.output.dense", bias=True),
    *_norm(f"{BLOCK}/norm_mlp", f"{layer}.output.LayerNorm", spec),
  ]
  if spec.head:
    roberta = spec.family == "roberta"
    transform = "lm_head" if roberta else "cls.predictions.transform"
    out += [
      *_linear("vocabulary/transform/dense", f"{transform}.dense", bias=True),
      *_norm(
        "vocabulary/transform/norm",
        f"{transform}.layer_norm" if roberta else f"{transform}.LayerNorm",
        spec,
      ),
      Entry("lm_head.bias" if roberta else "cls.predictions.bias", ("vocabulary/bias",), SAME),
      *_kernel_of_head(
        "lm_head.decoder.weight" if roberta else "cls.predictions.decoder.weight", spec
      ),
    ]
  return out


def _distilbert(spec: Spec) -> list[Entry]:
  prefix = "distilbert." if spec.head else ""
  embeddings, layer = f"{prefix}embeddings", f"{prefix}transformer.layer.{{i}}"
  out = [
    Entry(f"{embeddings}.word_embeddings.weight", ("embed/tokens",), SAME),
    Entry(f"{embeddings}.position_embeddings.weight", ("embed/positions",), SAME),
    *_norm("embed/norm", f"{embeddings}.LayerNorm", spec),
  ]
  for name in ("query", "key", "value"):
    out += _linear(f"{BLOCK}/attention/{name}", f"{layer}.attention.{name[0]}_lin", bias=True)
  out += [
    *_linear(f"{BLOCK}/attention/out", f"{layer}.attention.out_lin", bias=True, layout=DENSE_OUT),
    *_norm(f"{BLOCK}/norm_attention", f"{layer}.sa_layer_norm", spec),
    *_linear(f"{BLOCK}/mlp/up", f"{layer}.ffn.lin1", bias=True),
    *_linear(f"{BLOCK}/mlp/down", f"{layer}.ffn.lin2", bias=True),
    *_norm(f"{BLOCK}/norm_mlp", f"{layer}.output_layer_norm", spec),
  ]
  if spec.head:
    out += [
      *_linear("vocabulary/transform/dense", "vocab_transform", bias=True),
      *_norm("vocabulary/transform/norm", "vocab_layer_norm", spec),
      Entry("vocab_projector.bias", ("vocabulary/bias",), SAME),
      *_kernel_of_head("vocab_projector.weight", spec),
    ]
  return out


def _t5(spec: Seq2SeqSpec) -> list[Entry]:
  out = [Entry("shared.weight", ("embed/tokens",), SAME)]
  for stack, own in spec.stacks.items():
    layer, blocks = f"{stack}.block.{{i}}.layer", f"{stack}/blocks"
    attentions = {"attention": f"{layer}.0.SelfAttention"}
    norms = {"norm_attention": f"{layer}.0.layer_norm"}
    mlp = f"{layer}.1"
    if own.cross:
      attentions["cross_attention"] = f"{layer}.1.EncDecAttention"
      norms["norm_cross"] = f"{layer}.1.layer_norm"
      mlp = f"{layer}.2"
    norms["norm_mlp"] = f"{mlp}.layer_norm"
    part: list[Entry] = []
    for ours, theirs in attentions.items():
      for name in ("query", "key", "value"):
        part += _linear(f"{blocks}/{ours}/{name}", f"{theirs}.{name[0]}", bias=False)
      part += _linear(f"{blocks}/{ours}/out", f"{theirs}.o", bias=False, layout=DENSE_OUT)
    ways = {"gate": "wi_0", "up": "wi_1"} if own.gated else {"up": "wi"}
    for ours, theirs in (ways | {"down": "wo"}).items():
      part += _linear(f"{blocks}/mlp/{ours}", f"{mlp}.DenseReluDense.{theirs}", bias=False)
    for ours, theirs in norms.items():
      part += _norm(f"{blocks}/{ours}", theirs, own)
    part += _norm(f"{stack}/norm", f"{stack}.final_layer_norm", own)
    relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    part.append(Entry(relative, (f"{stack}/relative",), SAME))
    out += [entry._replace(stack=stack) for entry in part]
  return out + _kernel_of_head("lm_head.weight", spec.decoder)


def _tiled_heads(layout: Layout, groups: int, axis: int) -> Layout:
  """Mu's query head h reads key head h % groups, ours h // (heads / groups): heads trade places."""

  def trade(array: np.ndarray, first: int, second: int) -> np.ndarray:
    split = array.reshape(*array.shape[:axis], first, second, *array.shape[axis + 1 :])
    return split.swapaxes(axis, axis + 1).reshape(array.shape)

  def read(array: np.ndarray, shapes: Sequence[Shape]) -> tuple[np.ndarray, ...]:
    heads = shapes[0][axis]
    return (trade(layout.read(array, shapes)[0], heads // groups, groups),)

  return Layout(read, lambda array: layout.write(trade(array, groups, array.shape[axis] // groups)))


def _mu(spec: Seq2SeqSpec) -> list[Entry]:
  out = [Entry("transformer.wte.weight", ("embed/tokens",), SAME)]
  for stack, own in spec.stacks.items():
    layer, blocks = f"transformer.{'h' if own.cross else 'e'}.{{i}}", f"{stack}/blocks"
    names = {"attention": "attn", "norm_attention": "ln1", "norm_mlp": "ln2"}
    if own.cross:
      names |= {"attention": "causal_attn", "cross_attention": "cross_attn"}
      names |= {"norm_cross": "ln2", "norm_mlp": "ln3"}
    part: list[Entry] = []
    for ours, theirs in names.items():
      if ours.startswith("norm"):
        part += _norm(f"{blocks}/{ours}", f"{layer}.{theirs}", own)
        continue
      groups, path = own.kv_heads, f"{blocks}/{ours}"
      part += [
        Entry(
          f"{layer}.{theirs}.q_linear.weight",
          (f"{path}/query/kernel",),
          _tiled_heads(DENSE, groups, 1),
        ),
        Entry(
          f"{layer}.{theirs}.q_linear.bias",
          (f"{path}/query/bias",),
          _tiled_heads(VECTOR, groups, 0),
        ),
        Entry(
          f"{layer}.{theirs}.out_linear.weight",
          (f"{path}/out/kernel",),
          _tiled_heads(DENSE_OUT, groups, 0),
        ),
        Entry(f"{layer}.{theirs}.out_linear.bias", (f"{path}/out/bias",), VECTOR),
        *_linear(f"{path}/key", f"{layer}.{theirs}.k_linear", bias=True),
        *_linear(f"{path}/value", f"{layer}.{theirs}.v_linear", bias=True),
      ]
    part += _linear(f"{blocks}/mlp/up", f"{layer}.mlp.fc1", bias=True)
    part += _linear(f"{blocks}/mlp/down", f"{layer}.mlp.fc2", bias=True)
    part += _norm(f"{stack}/norm", f"transformer.{'ln_f' if own.cross else 'ln_e'}", own)
    out += [entry._replace(stack=stack) for entry in part]
  return out


ENTRIES: dict[str, Callable[..., list[Entry]]] = {
  "llama": _llama,
  "mistral": _llama,
  "qwen2": _llama,
  "qwen3": _llama,
  "gemma2": _llama,
  "gemma3_text": _llama,
  "gpt2": _gpt2,
  "gpt_neox": _gpt_neox,
  "bert": _bert,
  "roberta": _bert,
  "distilbert": _distilbert,
  "t5": _t5,
  "mu": _mu,
  **images.ENTRIES,
  "segformer": segformer_entries,
  "clip": clip.entries,
}
# Tensors that hold nothing that is learned, or that our models leave out.
IGNORED = (
  "num_batches_tracked",
  "relative_position_index",
  "rotary_emb.inv_freq",
  "position_ids",
  "attn.bias",
  "attn.masked_bias",
  "attention.bias",
  "attention.masked_bias",
  "pooler.dense.weight",
  "pooler.dense.bias",
  "cls.seq_relationship.weight",
  "cls.seq_relationship.bias",
)
# A tied head that is stored all the same.
TIED = (
  "lm_head.weight",
  "embed_out.weight",
  "cls.predictions.decoder.weight",
  "cls.predictions.decoder.bias",
  "lm_head.decoder.weight",
  "lm_head.decoder.bias",
  "vocab_projector.weight",
  "encoder.embed_tokens.weight",
  "decoder.embed_tokens.weight",
)
