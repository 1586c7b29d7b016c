"""Makes `reference/trans_kd.npz`: fusion, patch alignment and losses of RuipingL/TransKD.

  python make_trans_kd.py --trans_kd=REPOSITORY --out=reference/trans_kd.npz

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the file in the repository. The import of its SegFormer is left out;
a stub hands given maps to the class as the student.
"""

from __future__ import annotations

import argparse
import types
from pathlib import Path

import numpy as np
import torch

SEED, OWN, TOLD, MIDDLE = 43, (4, 6, 7, 5), (5, 8, 6, 9), 10
WEIGHTS = (0.1, 0.1, 0.5, 1.0)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--trans_kd", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  text = (flags.trans_kd / "train" / "CSF.py").read_text()
  kept = [line for line in text.splitlines() if not line.startswith("from models")]
  module = types.ModuleType("CSF")
  exec("\n".join(kept), module.__dict__)
  torch.manual_seed(SEED)

  sides = (8, 4, 2, 1)
  own = [torch.randn(3, c, s, s).requires_grad_() for c, s in zip(OWN, sides, strict=True)]
  told = [torch.randn(3, c, s, s) for c, s in zip(TOLD, sides, strict=True)]
  patches = [torch.randn(3, s * s, c).requires_grad_() for c, s in zip(OWN, sides, strict=True)]
  told_patches = [torch.randn(3, s * s, c) for c, s in zip(TOLD, sides, strict=True)]

  class Student(torch.nn.Module):
    def forward(self, x, is_feat):
      return own, None, patches

  model = module.SKF(Student(), list(OWN), list(TOLD), MIDDLE, 5).train()
  with torch.no_grad():  # norms too, which begin at 0 and 1
    for value in model.parameters():
      value.add_(0.1 * torch.randn_like(value))
  made, _, aligned = model(None)
  # The lines of `train` in train_TransKDBase.py.
  maps = module.hcl(made, told)
  mse = torch.nn.MSELoss()
  apart = [mse(a, b) for a, b in zip(aligned, told_patches, strict=True)]
  (maps + sum(w * a for w, a in zip(WEIGHTS, apart, strict=True))).backward()
  found = {"maps": maps, "apart": torch.stack(apart)}
  for i in range(4):
    found |= {f"own{i}": own[i], f"told{i}": told[i], f"made{i}": made[i]}
    found |= {f"patches{i}": patches[i], f"told_patches{i}": told_patches[i]}
    found |= {f"own_grad{i}": own[i].grad, f"patches_grad{i}": patches[i].grad}
  for name, value in model.named_parameters():
    found[f"weights/{name}"] = value
    if value.grad is not None:
      found[f"grads/{name}"] = value.grad
  np.savez_compressed(flags.out, **{name: v.detach().numpy() for name, v in found.items()})


if __name__ == "__main__":
  main()
