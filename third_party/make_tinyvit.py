"""Makes `reference/tinyvit`: what wkcn/TinyViT computes with a tiny random model and stored logits.

  python make_tinyvit.py --tinyvit=REPOSITORY --out=reference/tinyvit

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the files in the repository. Of timm, which is not needed, the model
uses four names; stand-ins take their place.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import torch

SIZES = {
  "img_size": 64,
  "in_chans": 3,
  "num_classes": 5,
  "embed_dims": [8, 12, 16, 24],
  "depths": [2, 2, 1, 1],
  "num_heads": [1, 3, 2, 3],
  "window_sizes": [4, 3, 4, 2],  # the second pads its map of 8, the others do not
  "drop_path_rate": 0.0,
  "mbconv_expand_ratio": 2.0,
  "mlp_ratio": 2.0,
}
PUBLISHED = {
  "5m": ([64, 128, 160, 320], [2, 4, 5, 10]),
  "11m": ([64, 128, 256, 448], [2, 4, 8, 14]),
  "21m": ([96, 192, 384, 576], [3, 6, 12, 18]),
}


def stand_ins() -> None:
  """The names that `tiny_vit.py` imports of timm."""

  class DropPath(torch.nn.Module):
    def __init__(self, drop_prob=None):
      super().__init__()

  names = {
    "timm": {"__version__": "0.9"},
    "timm.models": {},
    "timm.models.layers": {
      "DropPath": DropPath,
      "to_2tuple": lambda x: (x, x),
      "trunc_normal_": torch.nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda f: f},
    "timm.models._builder": {"build_model_with_cfg": None},
  }
  for name, members in names.items():
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    if "." in name:
      parent, own = name.rsplit(".", 1)
      setattr(sys.modules[parent], own, module)


def model_numbers(repository: Path) -> dict[str, np.ndarray]:
  stand_ins()
  scope: dict = {"__name__": "tiny_vit"}
  exec((repository / "models" / "tiny_vit.py").read_text(), scope)
  torch.manual_seed(0)
  model = scope["TinyViT"](**SIZES)
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if name.endswith("running_var"):
        value.copy_(0.5 + torch.rand_like(value))
      elif value.dtype.is_floating_point and value.ndim < 2:
        value.copy_((name.endswith("weight") * 1.0) + 0.2 * torch.randn_like(value))
      elif value.dtype.is_floating_point:
        value.copy_(torch.randn_like(value) * (0.5 if value.ndim == 4 else 0.2))
  model.eval()
  image = torch.randn(2, 3, 64, 64)
  out = {f"weight:{k}": v.numpy() for k, v in model.state_dict().items() if v.ndim}
  stages: list[torch.Tensor] = []
  for layer in model.layers:
    layer.blocks[-1].register_forward_hook(lambda m, x, y: stages.append(y))
  with torch.no_grad():
    out["logits"] = model(image).numpy()
  for i, stage in enumerate(stages, 1):
    if stage.ndim == 4:
      stage = stage.permute(0, 2, 3, 1)
    else:
      side = int(stage.shape[1] ** 0.5)
      stage = stage.reshape(2, side, side, -1)
    out[f"stage{i}"] = stage.numpy()
  parameters = sum(p.numel() for p in model.parameters())
  for name, (widths, heads) in PUBLISHED.items():
    own = scope["TinyViT"](
      embed_dims=widths, num_heads=heads, depths=[2, 2, 6, 2], window_sizes=[7, 7, 14, 7]
    )
    out[f"parameters_{name}"] = np.int64(sum(p.numel() for p in own.parameters()))
  return out | {"image": image.permute(0, 2, 3, 1).numpy(), "parameters": np.int64(parameters)}


def loss_numbers(repository: Path) -> dict[str, np.ndarray]:
  """The lines of `main.py` between reading stored logits and the loss, as they are."""
  text = (repository / "main.py").read_text().splitlines()
  first = next(i for i, line in enumerate(text) if "minor_value = (1.0" in line)
  last = next(i for i, line in enumerate(text) if "minor_value.scatter_" in line)
  lines = "\n".join(line.strip() for line in text[first : last + 1])
  rng = np.random.default_rng(31)
  student = torch.tensor(2 * rng.standard_normal((6, 12)), dtype=torch.float32, requires_grad=True)
  teacher = torch.tensor(2 * rng.standard_normal((6, 12)), dtype=torch.float32)
  out = {"student": student.detach().numpy(), "teacher": teacher.numpy()}
  for k in (1, 3, 11):
    values, index = torch.softmax(teacher, -1).topk(k=k, dim=-1)
    scope = {"logits_value": values, "logits_index": index, "num_classes": 12, "topk": k}
    exec(lines, scope)
    target = scope["outputs_teacher"]
    # timm's SoftTargetCrossEntropy
    loss = torch.sum(-target * torch.log_softmax(student, -1), -1).mean()
    (grad,) = torch.autograd.grad(loss, student)
    out |= {f"top{k}": loss.detach().numpy(), f"top{k}_grad": grad.numpy()}
    out[f"top{k}_target"] = target.numpy()
  return out


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--tinyvit", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  given = parser.parse_args()
  torch.set_num_threads(1)
  given.out.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(given.out / "model.npz", **model_numbers(given.tinyvit))
  np.savez_compressed(given.out / "loss.npz", **loss_numbers(given.tinyvit))


if __name__ == "__main__":
  main()
