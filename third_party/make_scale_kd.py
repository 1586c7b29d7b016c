"""Makes `reference/scale_kd.npz`: projectors and losses of deep-optimization/ScaleKD.

  python make_scale_kd.py --scale_kd=REPOSITORY --out=reference/scale_kd.npz

Needs PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this
file has the versions that made the file in the repository. Of mmcv and mmengine, which are not
needed, stand-ins take the place of what the classes use: `BaseModule`, the registry, the truncated
normal, `build_dropout` (rate 0), and `FFN` with mmcv's defaults: two linear layers with ReLU
between them and the input added.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

SEED = 41


class FFN(nn.Module):
  def __init__(self, embed_dims, feedforward_channels):
    super().__init__()
    self.up = nn.Linear(embed_dims, feedforward_channels)
    self.down = nn.Linear(feedforward_channels, embed_dims)

  def forward(self, x):
    return x + self.down(torch.relu(self.up(x)))


class Registry:
  def register_module(self):
    return lambda cls: cls


class BaseModule(nn.Module):
  def __init__(self, init_cfg=None):
    super().__init__()


def official(repository: Path) -> types.ModuleType:
  """The module `fmdv2.py`, with its `attention.py`."""

  def stand_in(name: str, **values) -> None:
    module = sys.modules[name] = types.ModuleType(name)
    module.__dict__.update(values)
    module.__path__ = []

  stand_in("mmcls", __path__=[])
  stand_in("mmcls.registry", MODELS=Registry())
  stand_in("mmcls.models")
  stand_in("mmcls.models.utils", MultiheadAttention=None, resize_pos_embed=None, to_2tuple=None)
  stand_in("mmcls.models.utils.helpers", to_2tuple=None)
  stand_in("mmcls.models.utils.layer_scale", LayerScale=None)
  for name in ("mmcv", "mmcv.cnn", "mmcv.cnn.bricks", "mmengine", "mmengine.model"):
    stand_in(name)
  stand_in("mmcv.cnn.bricks.drop", build_dropout=lambda _: nn.Identity())
  stand_in("mmcv.cnn.bricks.transformer", FFN=FFN, PatchMerging=None)
  sys.modules["mmengine.model"].BaseModule = BaseModule
  trunc = nn.init.trunc_normal_
  stand_in("mmengine.model.weight_init", trunc_normal_=trunc)
  stand_in("mmengine.utils", digit_version=lambda v: tuple(map(int, v.split("+")[0].split("."))))
  stand_in("mmcls.models.dis_losses")
  folder = repository / "mmcls" / "models" / "dis_losses"
  for name in ("attention", "fmdv2"):
    full = f"mmcls.models.dis_losses.{name}"
    module = sys.modules[full] = types.ModuleType(full)
    module.__package__ = "mmcls.models.dis_losses"
    exec(compile((folder / f"{name}.py").read_text(), name, "exec"), module.__dict__)
  return sys.modules["mmcls.models.dis_losses.fmdv2"]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--scale_kd", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  module = official(flags.scale_kd)
  torch.manual_seed(SEED)
  rng = np.random.default_rng(SEED)

  def draw(*shape):
    return torch.tensor(rng.standard_normal(shape).astype(np.float32))

  def made(student, teacher, side, heads, self_query):
    loss = module.FreqMaskingDistillLossv2(
      name="", use_this=True, alpha=[0.08, 0.06], student_dims=student, teacher_dims=teacher,
      query_hw=(side, side), pos_hw=(side, side), pos_dims=teacher, self_query=self_query,
      softmax_scale=[5.0, 5.0], num_heads=heads,
    )  # fmt: skip
    for value in loss.parameters():  # biases and norms too, which begin at 0 and 1
      with torch.no_grad():
        value.add_(0.1 * draw(*value.shape))
    return loss.train()

  # Student maps 4x4x5 and 2x2x6; teacher maps 4x4x8 and 2x2x12, of which the last stage is a stub:
  # it takes the mean of 2x2 places and widens it.
  low, high = draw(3, 5, 4, 4).requires_grad_(), draw(3, 6, 2, 2).requires_grad_()
  last, widen = draw(3, 12, 2, 2), draw(8, 12) / 3
  earlier, later = made(5, 8, 4, 2, True), made(6, 12, 2, 3, False)

  def stage(tokens):
    maps = tokens.reshape(3, 2, 2, 2, 2, 8).mean(dim=(2, 4))
    return (maps @ widen).reshape(3, 4, 12)

  # The lines of `ClassificationDistiller.loss` for a Swin teacher.
  spat = stage(earlier.project_feat_spat(low, query=None))
  freq = stage(earlier.project_feat_freq(low, query=None))
  terms = {
    "earlier/spatial": earlier.get_spat_loss(spat, last),
    "earlier/alternative": earlier.get_freq_loss(freq, last),
  }
  terms["later/spatial"], terms["later/alternative"] = later(high, last, query_s=spat, query_f=freq)
  sum(terms.values()).backward()
  found = {f"loss/{name}": value.detach().numpy() for name, value in terms.items()}
  found |= {"through/spatial": spat.detach().numpy(), "through/alternative": freq.detach().numpy()}
  found |= {"low": low, "high": high, "last": last, "widen": widen}
  found |= {"low_grad": low.grad, "high_grad": high.grad}
  for name, loss in (("earlier", earlier), ("later", later)):
    for key, value in loss.named_parameters():
      found[f"weights/{name}/{key}"] = value
      if value.grad is not None and "queries" not in key:
        found[f"grads/{name}/{key}"] = value.grad
  np.savez_compressed(
    flags.out, **{k: np.asarray(torch.as_tensor(v).detach()) for k, v in found.items()}
  )


if __name__ == "__main__":
  main()
