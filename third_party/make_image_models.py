"""Makes `reference/image_models`: tiny random checkpoints and what PyTorch computes with them.

  python make_image_models.py --out=reference/image_models

Needs PyTorch and transformers, which kdjax does not: it is run by hand and never by the tests.
README.md beside this file has the versions that made the files in the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers as hf

LABELS = 5
SHARED = {"num_labels": LABELS, "initializer_range": 0.2}
VIT = {
  "image_size": 16,
  "patch_size": 4,
  "num_channels": 3,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
}


def models() -> dict[str, hf.PreTrainedModel]:
  return {
    "vit": hf.ViTForImageClassification(hf.ViTConfig(**VIT, **SHARED)),
    "deit": hf.DeiTForImageClassification(hf.DeiTConfig(**VIT, **SHARED)),
    "deit_distilled": hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT, **SHARED)),
    "convnext": hf.ConvNextForImageClassification(
      hf.ConvNextConfig(
        **SHARED,
        image_size=32,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 2, 1, 1],
        layer_scale_init_value=0.5,
      )
    ),
    "swin": hf.SwinForImageClassification(
      hf.SwinConfig(
        **SHARED,
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
      )
    ),
    "resnet_basic": hf.ResNetForImageClassification(
      hf.ResNetConfig(
        **SHARED,
        embedding_size=8,
        hidden_sizes=[8, 12, 16],
        depths=[2, 1, 1],
        layer_type="basic",
      )
    ),
    "resnet_bottleneck": hf.ResNetForImageClassification(
      hf.ResNetConfig(
        **SHARED,
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[2, 2],
        layer_type="bottleneck",
      )
    ),
    "segformer": hf.SegformerForSemanticSegmentation(
      hf.SegformerConfig(
        **SHARED,
        depths=[2, 1, 1, 1],
        hidden_sizes=[8, 16, 20, 24],
        num_attention_heads=[1, 2, 2, 3],
        sr_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=12,
      )
    ),
    "clip": hf.CLIPModel(clip_config(eos_token_id=49)),
    "clip_old": hf.CLIPModel(clip_config(eos_token_id=2)),
  }


def clip_config(*, eos_token_id: int) -> hf.CLIPConfig:
  shared = {"num_hidden_layers": 2, "projection_dim": 8}
  text = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 48,
    "eos_token_id": eos_token_id,
  }
  vision = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
  }
  return hf.CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=8)


# Texts of three lengths, each begun by 48 and ended by 49, which also fills its row.
PROMPTS = [[48, 7, 3, 21, 49, 49], [48, 30, 49, 49, 49, 49], [48, 5, 6, 40, 11, 49]]


def shaken(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
  """Every weight and statistic at random, so that none is at the 0 or 1 that it begins with."""
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if not value.is_floating_point():
        continue
      if name.endswith("running_var"):
        value.copy_(0.5 + torch.rand_like(value))
      else:
        value.add_(0.1 * torch.randn_like(value))
  return model.eval()


@torch.no_grad()
def outputs(name: str, model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
  size = {"convnext": 32, "swin": 32, "resnet_basic": 32, "resnet_bottleneck": 32}.get(name, 16)
  size = 64 if name == "segformer" else size
  image = torch.randn(2, 3, size, size)
  given = {"image": image.permute(0, 2, 3, 1)}
  if name.startswith("clip"):
    tokens = torch.tensor(PROMPTS)
    out = model(input_ids=tokens, pixel_values=image)
    found = {"logits": out.logits_per_image, "image_embeds": out.image_embeds}
    found |= {"prompts": tokens, "text_embeds": out.text_embeds}
    return {key: value.numpy() for key, value in (given | found).items()}
  out = model(image, output_hidden_states=True)
  found = {"logits": out.logits}
  if name == "segformer":
    found["logits"] = out.logits.permute(0, 2, 3, 1)
  if name == "deit_distilled":
    found |= {"cls_logits": out.cls_logits, "distillation_logits": out.distillation_logits}
  states = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
  for place, state in enumerate(states):
    found[f"state{place}"] = state.permute(0, 2, 3, 1) if state.ndim == 4 else state
  return {key: value.numpy() for key, value in (given | found).items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--only", help="the beginning of the names to make", default="")
  options = parser.parse_args()
  out = options.out
  torch.manual_seed(0)
  for name, model in models().items():
    if not name.startswith(options.only):
      continue
    folder = out / name
    shaken(model).save_pretrained(folder)
    np.savez_compressed(folder / "outputs.npz", **outputs(name, model))


if __name__ == "__main__":
  main()
