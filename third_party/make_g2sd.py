"""Makes `reference/g2sd.npz`: two tiny masked autoencoders of pengzhiliang/G2SD and their loss.

  python make_g2sd.py --g2sd=REPOSITORY --out=reference/g2sd.npz

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the file in the repository. Of timm, which is not needed, the model
uses two names; stand-ins take their place. `np.float`, which NumPy no longer has, is set again.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import torch

MODELS = {
  "teacher": {
    "embed_dim": 24, "depth": 3, "num_heads": 3,
    "decoder_embed_dim": 16, "decoder_depth": 3, "decoder_num_heads": 4,
  },
  "student": {
    "embed_dim": 12, "depth": 2, "num_heads": 2,
    "decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2,
  },
}  # fmt: skip


class PatchEmbed(torch.nn.Module):
  def __init__(self, img_size, patch_size, in_chans, embed_dim):
    super().__init__()
    self.patch_size = (patch_size, patch_size)
    self.num_patches = (img_size // patch_size) ** 2
    self.proj = torch.nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


def official(repository: Path) -> dict:
  """The namespace of `models_mae.py`."""
  for name in ("timm", "timm.models", "timm.models.vision_transformer"):
    sys.modules[name] = types.ModuleType(name)
  sys.modules["timm.models.vision_transformer"].__dict__.update(
    PatchEmbed=PatchEmbed, DropPath=torch.nn.Identity
  )
  np.float = float
  sys.path.insert(0, str(repository / "G2SD"))
  scope: dict = {"__name__": "models_mae"}
  exec((repository / "G2SD" / "models_mae.py").read_text(), scope)
  return scope


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--g2sd", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  given = parser.parse_args()
  torch.set_num_threads(1)
  torch.manual_seed(0)
  scope = official(given.g2sd)
  norm = lambda width: torch.nn.LayerNorm(width, eps=1e-6)  # noqa: E731
  shared = {"img_size": 16, "patch_size": 4, "in_chans": 3, "norm_layer": norm, "mlp_ratio": 2}
  out: dict[str, np.ndarray] = {}
  image, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
  out |= {"image": image.permute(0, 2, 3, 1).numpy(), "noise": noise.numpy()}
  text = (given.g2sd / "G2SD" / "engine_distill.py").read_text().splitlines()
  lines = [
    line.strip()
    for line in text
    if line.strip().startswith(("labels_feature_decoder =", "loss_feature_decoder ="))
  ]
  weights = {}
  for everything in (True, False):
    torch.manual_seed(1)
    models = {}
    for name, sizes in MODELS.items():
      model = scope["MaskedAutoencoderViT"](
        **shared, **sizes, teacher=name == "teacher", suplayer=2, decoder_pred_channel=16,
        encoder_pred_channel=24, supervise_all=everything,
      )  # fmt: skip
      with torch.no_grad():
        for key, value in model.named_parameters():
          if "pos_embed" not in key:
            value.copy_(0.3 * torch.randn_like(value) + key.endswith("norm.weight"))
      models[name] = model
      weights |= {f"{name}:{k}": v.detach().numpy().copy() for k, v in model.state_dict().items()}
    teacher = models["teacher"](image, noise, mask_ratio=0.75)
    student = models["student"](image, noise, mask_ratio=0.75)
    own = {"nn": torch.nn, "F": torch.nn.functional}
    own |= {"decoder_hidden_tea": teacher[1].detach(), "pred_decoder_feature_stu": student[0]}
    exec("\n".join(lines), own)
    loss = own["loss_feature_decoder"]
    label = "all" if everything else "masked"
    out[label] = loss.detach().numpy()
    if everything:
      out |= {"mask": student[2].numpy(), "teacher_states": teacher[1].detach().numpy()}
      out["prediction"] = student[0].detach().numpy()
      (grad,) = torch.autograd.grad(loss, student[0], retain_graph=True)
      out["prediction_grad"] = grad.numpy()
      loss.backward()
      for key in ("mask_token", "decoder_embed.weight", "blocks.0.mlp.fc1.weight"):
        out[f"grad:{key}"] = dict(models["student"].named_parameters())[key].grad.numpy()
      # MAE's own loss of the teacher's pixels.
      whole = models["teacher"]
      whole.suplayer, whole.norm_pix_loss = 99, True
      with torch.no_grad():
        latent, mask, restore, *_ = whole.forward_encoder(image, 0.75, noise)
        hidden, _ = whole.forward_decoder(latent, restore)
        made = whole.decoder_pred(whole.decoder_norm(hidden))[:, 1:]
        out |= {"reconstruction": made.numpy()}
        out["pixel_loss"] = whole.forward_loss(image, made, mask).numpy()
  np.savez_compressed(given.out, **out, **weights)


if __name__ == "__main__":
  main()
