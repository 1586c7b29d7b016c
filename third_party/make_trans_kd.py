"""Makes `reference/trans_kd*.npz`: fusion, patch alignment and losses of RuipingL/TransKD.

  python make_trans_kd.py --trans_kd=REPOSITORY --out=reference

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the files in the repository. The imports of its SegFormer, of `this`
and of timm's initialisers are left out; a stub hands given maps to the class as the student. The
shares of the mixer of `trans_kd_gl.npz` are set, which the code leaves uninitialised.
"""

from __future__ import annotations

import argparse
import types
from pathlib import Path

import numpy as np
import torch

SEED, OWN, TOLD, MIDDLE = 43, (4, 6, 7, 5), (5, 8, 6, 9), 10
WEIGHTS = (0.1, 0.1, 0.5, 1.0)
FILES = {"": "CSF.py", "_gl": "CSF_GLMixer.py", "_ea": "CSF_EA.py"}
LEFT_OUT = ("from models", "from this", "from timm")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--trans_kd", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  for suffix, file in FILES.items():
    found = run(suffix, (flags.trans_kd / "train" / file).read_text())
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    np.savez_compressed(flags.out / f"trans_kd{suffix}.npz", **arrays)


def run(suffix: str, text: str) -> dict[str, torch.Tensor]:
  kept = [line for line in text.splitlines() if not line.startswith(LEFT_OUT)]
  module = types.ModuleType("CSF")
  module.to_2tuple = lambda x: (x, x)
  module.trunc_normal_ = torch.nn.init.trunc_normal_
  exec("\n".join(kept), module.__dict__)
  torch.manual_seed(SEED)

  widths, sides, more = OWN, (8, 4, 2, 1), (5,)
  if suffix == "_gl":  # a deepest stage of several patches and heads
    widths, sides, more = (*OWN[:3], 6), (16, 8, 4, 2), (5, False, (1, 2, 7, 3))
  own = [torch.randn(3, c, s, s).requires_grad_() for c, s in zip(widths, sides, strict=True)]
  told = [torch.randn(3, c, s, s) for c, s in zip(TOLD, sides, strict=True)]
  patches = [torch.randn(3, s * s, c).requires_grad_() for c, s in zip(widths, sides, strict=True)]
  told_patches = [torch.randn(3, s * s, c) for c, s in zip(TOLD, sides, strict=True)]
  image = torch.randn(3, 3, 32, 32) if suffix == "_ea" else None

  class Student(torch.nn.Module):
    def forward(self, x, is_feat):
      return own, None, patches

  model = module.SKF(Student(), list(widths), list(TOLD), MIDDLE, *more).train()
  with torch.no_grad():
    if suffix == "_gl":
      model.atten_weight.fill_(1.0)
      model.conv_weight.fill_(1.0)
  with torch.no_grad():  # norms too, which begin at 0 and 1
    for value in model.parameters():
      value.add_(0.1 * torch.randn_like(value))
  made, _, aligned = model(image)
  # The lines of `train` in train_TransKDBase.py.
  maps = module.hcl(made, told)
  mse = torch.nn.MSELoss()
  apart = [mse(a, b) for a, b in zip(aligned, told_patches, strict=True)]
  (maps + sum(w * a for w, a in zip(WEIGHTS, apart, strict=True))).backward()
  found = {"maps": maps, "apart": torch.stack(apart)}
  found |= {} if image is None else {"image": image}
  for i in range(4):
    found |= {f"own{i}": own[i], f"told{i}": told[i], f"made{i}": made[i]}
    found |= {f"patches{i}": patches[i], f"told_patches{i}": told_patches[i]}
    found |= {f"own_grad{i}": own[i].grad, f"patches_grad{i}": patches[i].grad}
  for name, value in model.named_parameters():
    found[f"weights/{name}"] = value
    if value.grad is not None:
      found[f"grads/{name}"] = value.grad
  return found


if __name__ == "__main__":
  main()
