"""Image models: their tensors, and their configs read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert.fields import Config, Names, refuse
from kdjax.models.convert.layouts import (
  CONV,
  DENSE,
  DENSE_OUT,
  DEPTHWISE,
  SAME,
  VECTOR,
  Entry,
  Layout,
  patches,
)
from kdjax.models.convnext import ConvNeXtSpec
from kdjax.models.imagenet_resnet import ResNetSpec
from kdjax.models.swin import SwinSpec
from kdjax.models.vision_transformer import ViTSpec

TWO_HEADS = "DeiTForImageClassificationWithTeacher"
# The activations of image models in a config.json, by ours.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def linear(ours: str, theirs: str, *, bias: bool = True, layout: Layout = DENSE) -> list[Entry]:
  out = [Entry(f"{theirs}.weight", (f"{ours}/kernel",), layout)]
  return out + [Entry(f"{theirs}.bias", (f"{ours}/bias",), VECTOR)] if bias else out


def norm(ours: str, theirs: str) -> list[Entry]:
  return [
    Entry(f"{theirs}.weight", (f"{ours}/scale",), SAME),
    Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME),
  ]


def _vit(spec: ViTSpec) -> list[Entry]:
  family = spec.family
  embeddings, layer = f"{family}.embeddings", f"{family}.encoder.layer.{{i}}"
  out = linear("embed", f"{embeddings}.patch_embeddings.projection", layout=patches(spec.patch))
  out += [
    Entry(f"{embeddings}.cls_token", ("class_token",), _unsqueezed(1)),
    Entry(f"{embeddings}.position_embeddings", ("position",), _unsqueezed(1)),
  ]
  if family == "deit":
    out.append(Entry(f"{embeddings}.distillation_token", ("distillation_token",), _unsqueezed(1)))
  for name in ("query", "key", "value"):
    theirs = f"{layer}.attention.attention.{name}"
    out += linear(f"blocks/{name}", theirs, bias=spec.qkv_bias)
  out += linear("blocks/out", f"{layer}.attention.output.dense", layout=DENSE_OUT)
  out += linear("blocks/up", f"{layer}.intermediate.dense")
  out += linear("blocks/down", f"{layer}.output.dense")
  out += norm("blocks/norm_attention", f"{layer}.layernorm_before")
  out += norm("blocks/norm_mlp", f"{layer}.layernorm_after")
  out += norm("norm", f"{family}.layernorm")
  if spec.second_head:
    out += linear("head", "cls_classifier")
    out += linear("distillation_head", "distillation_classifier")
  else:
    out += linear("head", "classifier")
  return [entry._replace(stack="blocks") for entry in out]


def _unsqueezed(axes: int) -> Layout:
  """Axes of length 1 come first on their side."""
  return Layout(SAME.read, lambda array: array.reshape(*(1,) * axes, *array.shape))


def _convnext(spec: ConvNeXtSpec) -> list[Entry]:
  embeddings = "convnext.embeddings"
  out = linear("stem", f"{embeddings}.patch_embeddings", layout=CONV)
  out += norm("stem_norm", f"{embeddings}.layernorm")
  for i in range(len(spec.depths)):
    ours, theirs = f"stage{i + 1}", f"convnext.encoder.stages.{i}"
    if i:
      out += norm(f"{ours}/norm", f"{theirs}.downsampling_layer.0")
      out += linear(f"{ours}/shrink", f"{theirs}.downsampling_layer.1", layout=CONV)
    block, layer = f"{ours}/blocks", f"{theirs}.layers.{{i}}"
    part = linear(f"{block}/mix", f"{layer}.dwconv", layout=DEPTHWISE)
    part += norm(f"{block}/norm", f"{layer}.layernorm")
    part += linear(f"{block}/up", f"{layer}.pwconv1") + linear(f"{block}/down", f"{layer}.pwconv2")
    if spec.scale > 0:
      part.append(Entry(f"{layer}.layer_scale_parameter", (f"{block}/scale",), SAME))
    out += [entry._replace(stack=ours) for entry in part]
  return out + norm("norm", "convnext.layernorm") + linear("head", "classifier")


def _swin(spec: SwinSpec) -> list[Entry]:
  embeddings = "swin.embeddings"
  projection = f"{embeddings}.patch_embeddings.projection"
  out = linear("embed", projection, layout=patches(spec.patch))
  out += norm("embed_norm", f"{embeddings}.norm")
  for i in range(len(spec.depths)):
    theirs = f"swin.encoder.layers.{i}"
    layer = f"{theirs}.blocks.{{i}}"
    for first, kind in enumerate(("plain", "shifted")):
      block = f"stage{i + 1}/{kind}"
      attention = f"{layer}.attention.self"
      part = [
        Entry(f"{attention}.relative_position_bias_table", (f"{block}/bias",), SAME),
        *linear(f"{block}/out", f"{layer}.attention.output.dense", layout=DENSE_OUT),
        *linear(f"{block}/up", f"{layer}.intermediate.dense"),
        *linear(f"{block}/down", f"{layer}.output.dense"),
        *norm(f"{block}/norm_attention", f"{layer}.layernorm_before"),
        *norm(f"{block}/norm_mlp", f"{layer}.layernorm_after"),
      ]
      for name in ("query", "key", "value"):
        part += linear(f"{block}/{name}", f"{attention}.{name}", bias=spec.qkv_bias)
      out += [entry._replace(stack=f"stage{i + 1}", every=2, first=first) for entry in part]
    if i < len(spec.depths) - 1:
      out += norm(f"merge{i + 1}/norm", f"{theirs}.downsample.norm")
      out += linear(f"merge{i + 1}/reduce", f"{theirs}.downsample.reduction", bias=False)
  return out + norm("norm", "swin.layernorm") + linear("head", "classifier")


def _resnet(spec: ResNetSpec) -> list[Entry]:
  out = _conv_norm("stem", "resnet.embedder.embedder")
  for i, depth in enumerate(spec.depths):
    for j in range(depth):
      ours, theirs = f"stage{i + 1}/block_{j}", f"resnet.encoder.stages.{i}.layers.{j}"
      for place, name in enumerate(spec.convolutions):
        out += _conv_norm(f"{ours}/{name}", f"{theirs}.layer.{place}")
      if j == 0 and spec.changes(i):
        out += _conv_norm(f"{ours}/shortcut", f"{theirs}.shortcut")
  return out + linear("head", "classifier.1")


def _conv_norm(ours: str, theirs: str) -> list[Entry]:
  statistics = {"running_mean": "mean", "running_var": "var"}
  return [
    Entry(f"{theirs}.convolution.weight", (f"{ours}/conv/kernel",), CONV),
    *norm(f"{ours}/norm", f"{theirs}.normalization"),
    *(
      Entry(f"{theirs}.normalization.{name}", (f"state:{ours}/norm/{own}",), SAME)
      for name, own in statistics.items()
    ),
  ]


ENTRIES: dict[str, Callable[..., list[Entry]]] = {
  "vit": _vit,
  "deit": _vit,
  "convnext": _convnext,
  "swin": _swin,
  "resnet": _resnet,
}


def _square(config: Config) -> tuple[int, int]:
  side = config["image_size"]
  return (side, side) if isinstance(side, int) else tuple(side)


def _activation(config: Config) -> str:
  for ours, theirs in ACTIVATIONS.items():
    if config["hidden_act"] == theirs:
      return ours
  raise KdjaxError(
    f"config.json: hidden_act = {config['hidden_act']!r} of a {config['model_type']!r} model is not"
    f" supported; what is: {sorted(ACTIVATIONS.values())}"
  )


def only(config: Config, field: str, wanted: Any) -> None:
  if config.get(field, wanted) != wanted:
    raise KdjaxError(
      f"config.json: {field} = {config[field]!r} of a {config['model_type']!r} model is not"
      f" supported; it must be {wanted!r}"
    )


def labels_of(config: Config) -> int:
  """The number of labels: transformers writes their names, or leaves out the default of two."""
  return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def names_of_labels(spec: Any) -> dict[str, Any]:
  names = {str(i): f"LABEL_{i}" for i in range(spec.num_classes)}
  return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


def read_vit(config: Config, names: Names) -> ViTSpec:
  tokens = "distilled" if config["model_type"] == "deit" else "cls"
  return ViTSpec(
    image=_square(config),
    channels=config["num_channels"],
    num_classes=labels_of(config),
    patch=config["patch_size"],
    width=config["hidden_size"],
    depth=config["num_hidden_layers"],
    heads=config["num_attention_heads"],
    mlp_width=config["intermediate_size"],
    pool=tokens,
    second_head="distillation_classifier.weight" in names,
    activation=_activation(config),
    eps=config["layer_norm_eps"],
    qkv_bias=config.get("qkv_bias", True),
    family=config["model_type"],
  )


def write_vit(spec: ViTSpec) -> dict[str, Any]:
  if spec.pool == "mean":
    raise KdjaxError(
      'a vit with pool = "mean" has no Hugging Face format; what has: "cls", "distilled"'
    )
  return {
    "image_size": spec.image[0] if spec.image[0] == spec.image[1] else list(spec.image),
    "num_channels": spec.channels,
    "patch_size": spec.patch,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "intermediate_size": spec.mlp_width,
    "hidden_act": ACTIVATIONS[spec.activation],
    "layer_norm_eps": spec.eps,
    "qkv_bias": spec.qkv_bias,
    **names_of_labels(spec),
    **({"architectures": [TWO_HEADS]} if spec.second_head else {}),
  }


def read_convnext(config: Config, names: Names) -> ConvNeXtSpec:
  only(config, "hidden_act", "gelu")
  return ConvNeXtSpec(
    widths=tuple(config["hidden_sizes"]),
    depths=tuple(config["depths"]),
    channels=config["num_channels"],
    num_classes=labels_of(config),
    patch=config["patch_size"],
    scale=config["layer_scale_init_value"],
    final_eps=config["layer_norm_eps"],
  )


def write_convnext(spec: ConvNeXtSpec) -> dict[str, Any]:
  return {
    "hidden_sizes": list(spec.widths),
    "depths": list(spec.depths),
    "num_channels": spec.channels,
    "patch_size": spec.patch,
    "layer_scale_init_value": spec.scale,
    "layer_norm_eps": spec.final_eps,
    "hidden_act": "gelu",
    **names_of_labels(spec),
  }


def read_swin(config: Config, names: Names) -> SwinSpec:
  only(config, "hidden_act", "gelu")
  refuse(config, "use_absolute_embeddings")
  return SwinSpec(
    width=config["embed_dim"],
    depths=tuple(config["depths"]),
    heads=tuple(config["num_heads"]),
    channels=config["num_channels"],
    num_classes=labels_of(config),
    patch=config["patch_size"],
    window=config["window_size"],
    mlp_ratio=config["mlp_ratio"],
    qkv_bias=config["qkv_bias"],
    eps=config["layer_norm_eps"],
  )


def write_swin(spec: SwinSpec) -> dict[str, Any]:
  return {
    "embed_dim": spec.width,
    "depths": list(spec.depths),
    "num_heads": list(spec.heads),
    "num_channels": spec.channels,
    "patch_size": spec.patch,
    "window_size": spec.window,
    "mlp_ratio": spec.mlp_ratio,
    "qkv_bias": spec.qkv_bias,
    "layer_norm_eps": spec.eps,
    "hidden_act": "gelu",
    **names_of_labels(spec),
  }


def read_resnet(config: Config, names: Names) -> ResNetSpec:
  only(config, "hidden_act", "relu")
  refuse(config, "downsample_in_first_stage", "downsample_in_bottleneck")
  return ResNetSpec(
    widths=tuple(config["hidden_sizes"]),
    depths=tuple(config["depths"]),
    channels=config["num_channels"],
    num_classes=labels_of(config),
    stem=config["embedding_size"],
    block=config["layer_type"],
  )


def write_resnet(spec: ResNetSpec) -> dict[str, Any]:
  return {
    "hidden_sizes": list(spec.widths),
    "depths": list(spec.depths),
    "num_channels": spec.channels,
    "embedding_size": spec.stem,
    "layer_type": spec.block,
    "hidden_act": "relu",
    **names_of_labels(spec),
  }
