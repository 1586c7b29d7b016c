"""SegFormer: its tensors, and its config read and written."""

from __future__ import annotations

from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert.fields import Config, Names
from kdjax.models.convert.images import labels_of, linear, names_of_labels, norm, only
from kdjax.models.convert.layouts import CONV, DENSE_OUT, DEPTHWISE, SAME, Entry, patches
from kdjax.models.segformer import SegformerSpec

DECODER = "decode_head"


def segformer_entries(spec: SegformerSpec) -> list[Entry]:
  out = []
  for i, reduction in enumerate(spec.reductions):
    ours, encoder = f"stage{i + 1}", "segformer.encoder"
    layer = f"{encoder}.block.{i}.{{i}}"
    attention = f"{layer}.attention.self"
    out += linear(f"embed{i + 1}", f"{encoder}.patch_embeddings.{i}.proj", layout=CONV)
    out += norm(f"embed_norm{i + 1}", f"{encoder}.patch_embeddings.{i}.layer_norm")
    part = linear(f"{ours}/out", f"{layer}.attention.output.dense", layout=DENSE_OUT)
    for name in ("query", "key", "value"):
      part += linear(f"{ours}/{name}", f"{attention}.{name}")
    if reduction > 1:
      part += linear(f"{ours}/reduce", f"{attention}.sr", layout=patches(reduction))
      part += norm(f"{ours}/reduce_norm", f"{attention}.layer_norm")
    part += norm(f"{ours}/norm_attention", f"{layer}.layer_norm_1")
    part += norm(f"{ours}/norm_mlp", f"{layer}.layer_norm_2")
    part += linear(f"{ours}/up", f"{layer}.mlp.dense1")
    part += linear(f"{ours}/mix", f"{layer}.mlp.dwconv.dwconv", layout=DEPTHWISE)
    part += linear(f"{ours}/down", f"{layer}.mlp.dense2")
    out += [entry._replace(stack=ours) for entry in part]
    out += norm(f"norm{i + 1}", f"{encoder}.layer_norm.{i}")
    out += linear(f"level{i + 1}", f"{DECODER}.linear_c.{i}.proj")
  out += linear("fuse", f"{DECODER}.linear_fuse", bias=False, layout=patches(1))
  out += norm("fuse_norm/norm", f"{DECODER}.batch_norm")
  for theirs, own in (("running_mean", "mean"), ("running_var", "var")):
    out.append(Entry(f"{DECODER}.batch_norm.{theirs}", (f"state:fuse_norm/norm/{own}",), SAME))
  return out + linear("head", f"{DECODER}.classifier", layout=patches(1))


def read_segformer(config: Config, names: Names) -> SegformerSpec:
  only(config, "hidden_act", "gelu")
  only(config, "reshape_last_stage", True)
  if f"{DECODER}.classifier.weight" not in names:
    raise KdjaxError(
      "config.json: this segformer has no decoder (decode_head); use a checkpoint for segmentation"
    )
  return SegformerSpec(
    widths=tuple(config["hidden_sizes"]),
    depths=tuple(config["depths"]),
    heads=tuple(config["num_attention_heads"]),
    reductions=tuple(config["sr_ratios"]),
    channels=config["num_channels"],
    num_classes=labels_of(config),
    kernels=tuple(config["patch_sizes"]),
    strides=tuple(config["strides"]),
    mlp_ratios=tuple(config["mlp_ratios"]),
    decoder_width=config["decoder_hidden_size"],
  )


def write_segformer(spec: SegformerSpec) -> dict[str, Any]:
  return {
    "hidden_sizes": list(spec.widths),
    "depths": list(spec.depths),
    "num_attention_heads": list(spec.heads),
    "sr_ratios": list(spec.reductions),
    "num_channels": spec.channels,
    "num_encoder_blocks": len(spec.widths),
    "patch_sizes": list(spec.kernels),
    "strides": list(spec.strides),
    "mlp_ratios": list(spec.mlp_ratios),
    "decoder_hidden_size": spec.decoder_width,
    "hidden_act": "gelu",
    "reshape_last_stage": True,
    **names_of_labels(spec),
  }
