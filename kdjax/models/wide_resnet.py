"""The wide residual network for small images: norm and activation come before each convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import MapNorm, dropout_rngs, linear, named, read_out
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "preactivations", "embedding"})
_STAGES = ("stage1", "stage2", "stage3")


def _conv(before: int, after: int, *, size: int, stride: int = 1, dtype, rngs) -> nnx.Conv:
  return nnx.Conv(
    before,
    after,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=nnx.initializers.he_normal(),
    dtype=dtype,
    # One axis only is split: see residual_network.py.
    kernel_metadata=named(None, None, None, "embed"),
    rngs=rngs,
  )


class _Block(nnx.Module):
  def __init__(self, before: int, after: int, *, stride: int, dropout: float, dtype: Any, rngs):
    own = {"dtype": dtype, "rngs": rngs}
    self.norm1 = MapNorm(before, rngs=rngs)
    self.conv1 = _conv(before, after, size=3, stride=stride, **own)
    self.norm2 = MapNorm(after, rngs=rngs)
    self.conv2 = _conv(after, after, size=3, **own)
    self.dropout = nnx.Dropout(dropout)
    self.has_shortcut = before != after
    if self.has_shortcut:
      self.shortcut = _conv(before, after, size=1, stride=stride, **own)

  def __call__(self, hidden: Array, train: bool, rngs: nnx.Rngs | None) -> Array:
    active = jax.nn.relu(self.norm1(hidden, train))
    branch = jax.nn.relu(self.norm2(self.conv1(active), train))
    branch = self.conv2(self.dropout(branch, deterministic=rngs is None, rngs=rngs))
    # A shortcut that changes the shape reads what is already normed and active.
    return branch + (self.shortcut(active) if self.has_shortcut else hidden)


class _Stage(nnx.Module):
  """Blocks, of which the first may change the shape; not scanned, see residual_network.py."""

  def __init__(self, before, after, *, blocks: int, stride: int, dropout: float, dtype, rngs):
    self.blocks = blocks
    for i in range(blocks):
      block = _Block(
        before if i == 0 else after,
        after,
        stride=stride if i == 0 else 1,
        dropout=dropout,
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, f"block_{i}", block)

  def __call__(
    self, hidden: Array, train: bool, rngs
  ) -> Float[Array, "batch height width channel"]:
    for i in range(self.blocks):
      hidden = getattr(self, f"block_{i}")(hidden, train, rngs)
    return hidden


class _WideResNet(nnx.Module):
  def __init__(self, channels, *, num_classes, blocks, widen, dropout, dtype, rngs):
    sizes = (16, 16 * widen, 32 * widen, 64 * widen)
    self.stem = _conv(channels, sizes[0], size=3, dtype=dtype, rngs=rngs)
    own = {"blocks": blocks, "dropout": dropout, "dtype": dtype, "rngs": rngs}
    for i, name in enumerate(_STAGES):
      setattr(self, name, _Stage(sizes[i], sizes[i + 1], stride=2 if i else 1, **own))
    self.norm = MapNorm(sizes[-1], rngs=rngs)
    self.head = linear(sizes[-1], num_classes, ("embed", "vocab"), rngs=rngs)
    self.dropout, self.dtype = dropout, dtype

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.dropout, train, rngs)
    hidden, features = self.stem(image.astype(self.dtype)), {}
    for name in _STAGES:
      hidden = features[name] = getattr(self, name)(hidden, train, rngs)
    last = self.norm(hidden, train)
    out = read_out(self.head, jax.nn.relu(last).mean((1, 2), dtype=jnp.float32), taps)
    if "features" in taps:
      out = dataclasses.replace(out, features=features)
    if "preactivations" in taps:
      # What the next activation is taken of: each stage through the norm that follows it.
      following = {"stage1": self.stage2.block_0.norm1, "stage2": self.stage3.block_0.norm1}
      before = {name: norm(features[name], False) for name, norm in following.items()}
      out = dataclasses.replace(out, preactivations=before | {"stage3": last})
    return out


def wide_resnet(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  depth: int = 16,
  widen: int = 2,
  dropout: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """A wide residual network for small images, WRN-depth-widen.

  A 3x3 stem of 16 channels, then three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times
  `widen` channels; the last two halve height and width. Batch normalisation is as in `resnet`, but
  before the convolutions.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    depth: 10, 16, 22, ...: 6 n + 4.
    widen: how many times as wide as the plain network.
    dropout: rate in [0, 1) between the two convolutions of a block, when training.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, running statistics, the head and the
      logits are float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled, the same as hidden), features
    ("stage1" to "stage3", the sums that leave each) and preactivations (these through the norm that
    follows, with its running statistics but for the last).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> model = wide_resnet(num_classes=10, image_shape=(8, 8, 1), depth=10, widen=1)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.features["stage3"].shape
    (2, 2, 2, 64)

  Reference:
    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146
    (megvii-research/mdistiller, models/cifar/wrn.py).
  """
  inputs = checks.image_input(image_shape)
  checks.positive(num_classes=num_classes, depth=depth, widen=widen)
  checks.require(depth >= 10 and depth % 6 == 4, "depth", depth, "6 n + 4: 10, 16, 22, 28, ...")
  checks.dropout_rate(dropout)
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _WideResNet(
      image_shape[2],
      num_classes=num_classes,
      blocks=(depth - 4) // 6,
      widen=widen,
      dropout=dropout,
      dtype=compute_dtype,
      rngs=rngs,
    )

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=num_classes)
