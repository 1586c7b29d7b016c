"""The PyTorch side of `vision_step.py`: the same models and losses in plain, eager PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

STAGES = ("stage1", "stage2", "stage3")


class _ConvNorm(nn.Module):
  def __init__(self, in_size: int, out_size: int, size: int, stride: int):
    super().__init__()
    self.conv = nn.Conv2d(in_size, out_size, size, stride, padding=size // 2, bias=False)
    self.norm = nn.BatchNorm2d(out_size, momentum=0.1)

  def forward(self, x):
    return self.norm(self.conv(x))


class _ResidualBlock(nn.Module):
  def __init__(self, in_size: int, out_size: int, stride: int):
    super().__init__()
    self.first = _ConvNorm(in_size, out_size, 3, stride)
    self.second = _ConvNorm(out_size, out_size, 3, 1)
    self.shortcut = None
    if stride != 1 or in_size != out_size:
      self.shortcut = _ConvNorm(in_size, out_size, 1, stride)

  def forward(self, x):
    skip = x if self.shortcut is None else self.shortcut(x)
    return F.relu(self.second(F.relu(self.first(x), inplace=True)) + skip, inplace=True)


class ResNet(nn.Module):
  """As `kdjax.models.resnet`; gives (logits, maps of the stages)."""

  def __init__(self, *, depth: int, width: int, num_classes: int):
    super().__init__()
    self.stem = _ConvNorm(3, width, 3, 1)
    in_size = width
    for i, name in enumerate(STAGES):
      stage = nn.Module()
      for j in range((depth - 2) // 6):
        stride = 2 if i and not j else 1
        stage.add_module(f"block_{j}", _ResidualBlock(in_size, width * 2**i, stride))
        in_size = width * 2**i
      self.add_module(name, stage)
    self.head = nn.Linear(in_size, num_classes)

  def forward(self, image):
    x, maps = F.relu(self.stem(image), inplace=True), []
    for name in STAGES:
      for block in getattr(self, name).children():
        x = block(x)
      maps.append(x)
    return self.head(x.mean((2, 3))), maps


class _TransformerBlock(nn.Module):
  def __init__(self, width: int, heads: int):
    super().__init__()
    self.norm_attention = nn.LayerNorm(width, eps=1e-6)
    self.qkv = nn.Linear(width, 3 * width)  # in one product, as timm has it
    self.out = nn.Linear(width, width)
    self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    self.heads = heads

  def forward(self, x):
    batch, time, width = x.shape
    split = self.qkv(self.norm_attention(x)).view(batch, time, 3, self.heads, width // self.heads)
    attended = F.scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4))
    x = x + self.out(attended.transpose(1, 2).reshape(batch, time, width))
    return x + self.down(F.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


class ViT(nn.Module):
  """As `kdjax.models.vit` with DeiT's two tokens; gives the logits of both."""

  def __init__(self, *, patch: int, width: int, depth: int, heads: int, num_classes: int):
    super().__init__()
    self.embed = nn.Conv2d(3, width, patch, patch)
    self.class_token = nn.Parameter(torch.zeros(1, width))
    self.distillation_token = nn.Parameter(torch.zeros(1, width))
    self.position = nn.Parameter(torch.zeros((32 // patch) ** 2 + 2, width))
    self.blocks = nn.ModuleList(_TransformerBlock(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.head = nn.Linear(width, num_classes)
    self.distillation_head = nn.Linear(width, num_classes)

  def forward(self, image):
    patches = self.embed(image).flatten(2).transpose(1, 2)
    tokens = torch.cat([self.class_token, self.distillation_token])
    x = torch.cat([tokens.expand(len(image), -1, -1), patches], 1) + self.position
    for block in self.blocks:
      x = block(x)
    x = self.norm(x)
    return self.head(x[:, 0]), self.distillation_head(x[:, 1])


def step(case: dict, shared: str, memory_format: str):
  """A function that takes a step and gives its loss; weights and batch are read from `shared`."""
  torch.set_num_threads(2)
  kept = dict(np.load(shared))
  kind = {"resnet": ResNet, "vit": ViT}[case["student"]["name"]]

  def model(side: str):
    own = {key: value for key, value in case[side].items() if key not in ("name", "pool")}
    made = kind(**own)
    weights = {k.removeprefix(side + "/"): v for k, v in kept.items() if k.startswith(side)}
    made.load_state_dict(_renamed(weights, case[side]), strict=False)
    return made.to(memory_format=getattr(torch, memory_format))

  teacher, student = model("teacher").eval().requires_grad_(False), model("student").train()
  image = torch.from_numpy(kept["image"]).permute(0, 3, 1, 2)
  image = image.contiguous(memory_format=getattr(torch, memory_format))
  label = torch.from_numpy(kept["label"]).long()
  if case["optimizer"] == "sgd":
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, foreach=True)
  else:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)

  def run():
    with torch.no_grad():
      told = teacher(image)
    loss = _LOSSES[case["loss"]](student(image), told, label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

  return run


def _hinton(own, told, label, temperature=4.0):
  own_log, told_log = (F.log_softmax(each[0] / temperature, 1) for each in (own, told))
  kd = F.kl_div(own_log, told_log, reduction="batchmean", log_target=True) * temperature**2
  return 0.9 * kd + 0.1 * F.cross_entropy(own[0], label)


def _attention_transfer(own, told, label):
  def strength(x):
    return F.normalize(x.pow(2).mean(1).flatten(1))

  pairs = zip(own[1], told[1], strict=True)
  maps = sum((strength(a) - strength(b)).pow(2).mean() for a, b in pairs)
  return 1000.0 * maps + F.cross_entropy(own[0], label)


def _distillation_token(own, told, label):
  hard = ((told[0] + told[1]) / 2).argmax(1)
  return 0.5 * F.cross_entropy(own[0], label) + 0.5 * F.cross_entropy(own[1], hard)


_LOSSES = {
  "hinton_kd": _hinton,
  "attention_transfer": _attention_transfer,
  "distillation_token": _distillation_token,
}


def _renamed(weights: dict[str, np.ndarray], model: dict) -> dict[str, torch.Tensor]:
  """kdjax's names and layouts as PyTorch's."""
  found, blocks = {}, {}
  for name, value in weights.items():
    if name.startswith("blocks/"):
      for i, own in enumerate(value):
        blocks[f"blocks/{i}/{name.removeprefix('blocks/')}"] = own
    else:
      found[name] = value
  width = model["width"]
  for i in range(model["depth"] if blocks else 0):
    at = f"blocks/{i}/"
    parts = [{k: blocks.pop(f"{at}{n}/{k}") for k in ("kernel", "bias")} for n in _QKV]
    found[f"{at}qkv/kernel"] = np.concatenate([p["kernel"].reshape(width, -1) for p in parts], 1)
    found[f"{at}qkv/bias"] = np.concatenate([p["bias"].reshape(-1) for p in parts])
    blocks[f"{at}out/kernel"] = blocks[f"{at}out/kernel"].reshape(width, width)
  found |= blocks
  if "embed/kernel" in found:
    p = model["patch"]
    found["embed/kernel"] = found["embed/kernel"].reshape(p, p, 3, width)
  renamed = {}
  for name, value in found.items():
    if name.endswith("kernel"):
      value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    for old, new in _NAMES.items():
      name = name.replace(old, new)
    renamed[name.replace("/", ".")] = torch.from_numpy(np.ascontiguousarray(value))
  return renamed


_QKV = ("query", "key", "value")
_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "norm/mean": "norm/running_mean",
  "norm/var": "norm/running_var",
}
