"""Makes `reference/proc_kd.npz`: the two modules of Daniel00008/ProC-KD on random tokens.

  python make_proc_kd.py --proc_kd=REPOSITORY --out=reference/proc_kd.npz

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the file in the repository. The official code is written for
MindSpore; the methods `vlad3` and `aug3` are cut out of `models.py` and run, as they are, on
PyTorch's tensors, whose methods they use for the most part. `ops` and `F` are stand-ins that call
PyTorch's functions of the same names.
"""

from __future__ import annotations

import argparse
import ast
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

SEED, WIDTH, PROTOTYPES = 42, 6, 5


def official(path: Path) -> dict:
  """The two methods as functions."""
  ops = types.SimpleNamespace(
    repeat=lambda x, times: x.repeat(times),
    cat=lambda parts, axis: torch.cat(parts, dim=axis),
    tile=lambda x, times: torch.tile(x, times),
    matmul=torch.matmul,
    relu=torch.relu,
  )
  functional = types.SimpleNamespace(
    normalize=nn.functional.normalize, softmax=lambda x, axis: torch.softmax(x, dim=axis)
  )
  scope = {"ops": ops, "F": functional}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef) and node.name in ("vlad3", "aug3"):
      exec(ast.unparse(node), scope)
  return scope


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--proc_kd", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  scope = official(flags.proc_kd / "models.py")
  torch.manual_seed(SEED)
  d, k = WIDTH, PROTOTYPES
  # As `StudentVisionTransformer.__init__` has them.
  layers = {
    "cat_transform3": nn.Sequential(nn.Linear(3 * d, d), nn.ReLU()),
    "netvlad3": nn.Sequential(nn.Conv2d(d, k, 1)),
    "vladfc3": nn.Linear(k * d, d),
    "transform3": nn.Sequential(nn.Conv2d(2 * d, d, 1), nn.ReLU(), nn.Conv2d(d, d, 1), nn.ReLU()),
    "encode3": nn.Conv1d(d, d, 1),
    "aug_transform3": nn.Sequential(
      nn.Conv1d(2 * d, d, 1), nn.ReLU(), nn.Conv1d(d, d, 1), nn.ReLU()
    ),
  }
  model = types.SimpleNamespace(**layers, num_cluster=k)
  bank = torch.rand(k, d).requires_grad_()
  told = [torch.randn(3, 7, d) for _ in range(3)]
  own = torch.randn(3, 7, d).requires_grad_()
  gathered = scope["vlad3"](model, layers["cat_transform3"](torch.cat(told, dim=-1)), bank)
  guided = scope["aug3"](model, gathered, bank)
  enriched = scope["aug3"](model, own, bank)
  weight = torch.randn(3, 7, d)
  ((guided + enriched) * weight).sum().backward()
  found = {"bank": bank, "bank_grad": bank.grad, "own": own, "own_grad": own.grad}
  found |= {"told": torch.stack(told), "weight": weight}
  found |= {"gathered": gathered, "guided": guided, "enriched": enriched}
  for name, layer in layers.items():
    for key, value in layer.named_parameters():
      found |= {f"weights/{name}.{key}": value, f"grads/{name}.{key}": value.grad}
  arrays = {name: np.asarray(value.detach()) for name, value in found.items()}
  np.savez_compressed(flags.out, **arrays)


if __name__ == "__main__":
  main()
