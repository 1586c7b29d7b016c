"""CLIP's tensors, and its config read and written."""

from __future__ import annotations

from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.clip import ClipSpec, text_spec, vision_spec
from kdjax.models.convert.fields import Config, Names
from kdjax.models.convert.images import ACTIVATIONS, linear, norm
from kdjax.models.convert.layouts import DENSE_OUT, SAME, VECTOR, Entry, patches

# What a config.json of transformers leaves out where it is the default.
_TEXT = {
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "eos_token_id": 49407,
}
_VISION = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 32,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
}
# In files older than the fix of that id it is 2, and texts are read at their highest id.
_OLD_END = 2


def entries(spec: ClipSpec) -> list[Entry]:
  out = [
    Entry("logit_scale", ("logit_scale",), SAME),
    *linear("text_projection", "text_projection", bias=False),
    *linear("vision/head", "visual_projection", bias=False),
  ]
  image = "vision_model.embeddings"
  out += linear(
    "vision/embed", f"{image}.patch_embedding", bias=False, layout=patches(spec.vision.patch)
  )
  out += [
    Entry(f"{image}.class_embedding", ("vision/class_token",), VECTOR),
    Entry(f"{image}.position_embedding.weight", ("vision/position",), SAME),
    *norm("vision/embed_norm", "vision_model.pre_layrnorm"),  # their spelling
    *norm("vision/norm", "vision_model.post_layernorm"),
    *_blocks("vision/blocks", "vision", "vision_model", attention="", mlp=""),
  ]
  text = "text_model.embeddings"
  return [
    *out,
    Entry(f"{text}.token_embedding.weight", ("text/embed/tokens",), SAME),
    Entry(f"{text}.position_embedding.weight", ("text/embed/positions",), SAME),
    *norm("text/stack/norm", "text_model.final_layer_norm"),
    *_blocks("text/stack/blocks", "text", "text_model", attention="attention/", mlp="mlp/"),
  ]


def _blocks(ours: str, stack: str, theirs: str, *, attention: str, mlp: str) -> list[Entry]:
  layer = f"{theirs}.encoder.layers.{{i}}"
  out = linear(f"{ours}/{attention}out", f"{layer}.self_attn.out_proj", layout=DENSE_OUT)
  for name in ("query", "key", "value"):
    out += linear(f"{ours}/{attention}{name}", f"{layer}.self_attn.{name[0]}_proj")
  out += linear(f"{ours}/{mlp}up", f"{layer}.mlp.fc1")
  out += linear(f"{ours}/{mlp}down", f"{layer}.mlp.fc2")
  out += norm(f"{ours}/norm_attention", f"{layer}.layer_norm1")
  out += norm(f"{ours}/norm_mlp", f"{layer}.layer_norm2")
  return [entry._replace(stack=stack) for entry in out]


def read_clip(config: Config, names: Names) -> ClipSpec:
  text = _TEXT | (config.get("text_config") or {})
  vision = _VISION | (config.get("vision_config") or {})
  end = text["eos_token_id"]
  return ClipSpec(
    vision=vision_spec(
      image=(vision["image_size"],) * 2,
      channels=vision["num_channels"],
      num_classes=config.get("projection_dim", 512),
      patch=vision["patch_size"],
      width=vision["hidden_size"],
      depth=vision["num_hidden_layers"],
      heads=vision["num_attention_heads"],
      mlp_width=vision["intermediate_size"],
      activation=_activation(vision),
      eps=vision["layer_norm_eps"],
    ),
    text=text_spec(
      vocab=text["vocab_size"],
      width=text["hidden_size"],
      depth=text["num_hidden_layers"],
      heads=text["num_attention_heads"],
      mlp_width=text["intermediate_size"],
      max_positions=text["max_position_embeddings"],
      activation=_activation(text),
      norm_eps=text["layer_norm_eps"],
    ),
    end=None if end == _OLD_END else end,
  )


def _activation(config: Config) -> str:
  for ours, theirs in ACTIVATIONS.items():
    if config["hidden_act"] == theirs:
      return ours
  raise KdjaxError(
    f"config.json: hidden_act = {config['hidden_act']!r} of a 'clip' model is not supported; what"
    f" is: {sorted(ACTIVATIONS.values())}"
  )


def write_clip(spec: ClipSpec) -> dict[str, Any]:
  vision, text = spec.vision, spec.text
  if vision.image[0] != vision.image[1]:
    raise KdjaxError(f"CLIP's config.json knows square images; the model's are {vision.image}")
  if vision.prompts:
    raise KdjaxError("a CLIP with learned visual prompts has no Hugging Face format")
  return {
    "projection_dim": spec.width,
    "text_config": {
      "model_type": "clip_text_model",
      "projection_dim": spec.width,
      "vocab_size": text.vocab,
      "hidden_size": text.width,
      "intermediate_size": text.mlp_width,
      "num_hidden_layers": text.depth,
      "num_attention_heads": text.heads,
      "max_position_embeddings": text.max_positions,
      "hidden_act": ACTIVATIONS[text.activation],
      "layer_norm_eps": text.norm_eps,
      "eos_token_id": _OLD_END if spec.end is None else spec.end,
    },
    "vision_config": {
      "model_type": "clip_vision_model",
      "projection_dim": spec.width,
      "hidden_size": vision.width,
      "intermediate_size": vision.mlp_width,
      "num_hidden_layers": vision.depth,
      "num_attention_heads": vision.heads,
      "num_channels": vision.channels,
      "image_size": vision.image[0],
      "patch_size": vision.patch,
      "hidden_act": ACTIVATIONS[vision.activation],
      "layer_norm_eps": vision.eps,
    },
  }
