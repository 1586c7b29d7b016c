"""Makes `reference/drive_adapter.npz`: adapters, actions and losses of OpenDriveLab/DriveAdapter.

  python make_drive_adapter.py --driveadapter=REPOSITORY --out=reference/drive_adapter.npz

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the file in the repository. The head imports mmcv and mmdet; of its
file the classes and functions below are taken as they stand, with a stand-in for its base class.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Beta

HEAD = "open_loop_training/code/model_code/dense_heads/driver_adapter_head.py"
CLASSES = ("SEModule", "AdapterCNN", "MLP")
METHODS = ("_get_action_beta", "loss")


def official(repository: Path) -> dict:
  """The head's classes, and its two methods as functions of a stand-in for `self`."""
  tree = ast.parse((repository / HEAD).read_text())
  kept = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in CLASSES]
  head = next(n for n in tree.body if getattr(n, "name", "") == "DriveAdapterHead")
  for node in head.body:
    if isinstance(node, ast.FunctionDef) and node.name in METHODS:
      node.decorator_list = []
      kept.append(node)
  scope = {"torch": torch, "nn": nn, "F": F, "Beta": Beta}
  exec(compile(ast.Module(kept, []), HEAD, "exec"), scope)
  return scope


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--driveadapter", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  given = parser.parse_args()
  torch.set_num_threads(1)
  torch.manual_seed(0)
  scope = official(given.driveadapter)
  out: dict[str, np.ndarray] = {}

  maps = torch.randn(3, 12, 5, 6)
  adapter = scope["AdapterCNN"](12, 4)
  mlp = scope["MLP"](6, 3)
  for name, module in (("adapter", adapter), ("mlp", mlp)):
    with torch.no_grad():
      for value in module.parameters():
        value.copy_(0.3 * torch.randn_like(value))
    out |= {f"{name}:{k}": v.detach().numpy().copy() for k, v in module.named_parameters()}
  out["maps"] = maps.permute(0, 2, 3, 1).numpy()
  out["adapted"] = adapter(maps.clone()).permute(0, 2, 3, 1).detach().numpy()  # batch statistics
  vectors = torch.randn(4, 6)
  out |= {"vectors": vectors.numpy(), "mlp_out": mlp(vectors).detach().numpy()}

  batch = 5
  policies = torch.rand(2, batch, 2, 2) * 4 + 0.2  # student and label; action; alpha and beta
  policies[1, 1, 0] = torch.tensor([0.8, 5.5])
  features = torch.randn(2, batch, 4, 3, 3)
  states = torch.randn(2, batch, 7)
  flags = torch.tensor([False, True, False, False, True])

  class Stand(dict):
    """`self`, its `config` among its attributes."""

    __getattr__ = dict.__getitem__

  own = Stand(
    config={"head_loss": ["action", "cnn_feature0", "latent_state"], "mask_ap_brake": True},
    action_loss_weight=2.0,
    cnn_feature_loss_weight_list=[50.0],
  )
  own["_get_action_beta"] = lambda a, b: scope["_get_action_beta"](own, a, b)
  label = {
    "waypoints": None, "action_mu": policies[1, ..., 0], "action_sigma": policies[1, ..., 1],
    "only_ap_brake": flags, "grid_feature": [features[1]], "feature": states[1],
  }  # fmt: skip
  student = {"mu": policies[0, ..., 0].clone().requires_grad_()}
  student |= {"sigma": policies[0, ..., 1].clone().requires_grad_()}
  told = scope["loss"](
    own, label, student | {"bev_mid_feature_lis": [features[0]], "latent_state": states[0]}
  )
  told["action_loss"].backward()
  out |= {"policies": policies.numpy(), "flags": flags.numpy(), "states": states.numpy()}
  out["features"] = features.permute(0, 1, 3, 4, 2).numpy()
  names = {"action_loss": "action", "cnn_feature_loss0": "feature", "latent_state_loss": "state"}
  out |= {ours: told[theirs].detach().numpy() for theirs, ours in names.items()}
  out["action_grad"] = np.stack([student[k].grad.numpy() for k in ("mu", "sigma")], axis=-1)
  sides = (Beta(p[..., 0], p[..., 1]) for p in (policies[1], policies[0]))
  out["kl"] = torch.distributions.kl_divergence(*sides).numpy()
  ends = torch.tensor(
    [[[3.0, 2.0], [0.8, 5.5]], [[5.0, 0.9], [0.5, 0.7]], [[1.0, 1.0], [2.0, 2.0]]]
  )
  out["ends"] = ends.numpy()
  out["actions"] = scope["_get_action_beta"](own, ends[..., 0], ends[..., 1]).numpy()
  np.savez_compressed(given.out, **out)


if __name__ == "__main__":
  main()
