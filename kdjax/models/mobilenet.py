"""MobileNets: a convolution of each channel by itself, then a mixture of channels at each place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import Depthwise, MapNorm, linear, read_out
from kdjax.models.residual_network import ConvNorm
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "embedding"})
# (channels, blocks, stride of the first) of each stage.
STAGES = {
  1: ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)),
  2: ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)),
}
STEM, LAST = 32, 1280


class _Pointwise(nnx.Module):
  """A 1x1 convolution, as a product, and its norm."""

  def __init__(self, before: int, after: int, *, dtype, rngs: nnx.Rngs):
    self.conv = linear(before, after, (None, "embed"), rngs=rngs, dtype=dtype, use_bias=False)
    self.norm = MapNorm(after, rngs=rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    return self.norm(self.conv(hidden), train)


class _Local(nnx.Module):
  """A 3x3 convolution of each channel by itself, and its norm."""

  def __init__(self, width: int, *, stride: int, dtype, rngs: nnx.Rngs):
    self.conv = Depthwise(width, 3, stride=stride, use_bias=False, dtype=dtype, rngs=rngs)
    self.norm = MapNorm(width, rngs=rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    return self.norm(self.conv(hidden), train)


class _Separable(nnx.Module):
  """Version 1's block: local, then pointwise, each with an activation."""

  def __init__(self, before: int, after: int, *, stride: int, expand: int, dtype, rngs):
    self.local = _Local(before, stride=stride, dtype=dtype, rngs=rngs)
    self.mix = _Pointwise(before, after, dtype=dtype, rngs=rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    return jax.nn.relu6(self.mix(jax.nn.relu6(self.local(hidden, train)), train))


class _Inverted(nnx.Module):
  """Version 2's block: wide inside, narrow and without an activation where blocks meet."""

  def __init__(self, before: int, after: int, *, stride: int, expand: int, dtype, rngs):
    own = {"dtype": dtype, "rngs": rngs}
    self.widens, self.has_skip = expand > 1, stride == 1 and before == after
    if self.widens:
      self.up = _Pointwise(before, before * expand, **own)
    self.local = _Local(before * expand, stride=stride, **own)
    self.down = _Pointwise(before * expand, after, **own)

  def __call__(self, hidden: Array, train: bool) -> Array:
    wide = jax.nn.relu6(self.up(hidden, train)) if self.widens else hidden
    branch = self.down(jax.nn.relu6(self.local(wide, train)), train)
    return hidden + branch if self.has_skip else branch


_BLOCKS = {1: _Separable, 2: _Inverted}


class _MobileNet(nnx.Module):
  def __init__(self, channels, *, num_classes, version, stages, stem, last, expand, stride, **own):
    self.stem = ConvNorm(channels, stem, size=3, stride=stride, **own)
    before, self.depths = stem, tuple(blocks for _, blocks, _ in stages)
    # Not scanned: blocks of a stage differ in shape and stride.
    for i, (width, blocks, first) in enumerate(stages, 1):
      for j in range(blocks):
        block = _BLOCKS[version](
          before, width, stride=1 if j else first, expand=1 if i == 1 else expand, **own
        )
        setattr(self, f"stage{i}_block_{j}", block)
        before = width
    self.has_last = version == 2
    if self.has_last:
      self.last = _Pointwise(before, last, **own)
      before = last
    self.head = linear(before, num_classes, ("embed", "vocab"), rngs=own["rngs"])
    self.dtype = own["dtype"]

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    hidden = jax.nn.relu6(self.stem(image.astype(self.dtype), train))
    features = {}
    for i, blocks in enumerate(self.depths, 1):
      for j in range(blocks):
        hidden = getattr(self, f"stage{i}_block_{j}")(hidden, train)
      features[f"stage{i}"] = hidden
    if self.has_last:
      hidden = jax.nn.relu6(self.last(hidden, train))
    out = read_out(self.head, hidden.mean((1, 2), dtype=jnp.float32), taps)
    return dataclasses.replace(out, features=features) if "features" in taps else out


def mobilenet(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  version: int = 2,
  width: float = 1.0,
  stages: Sequence[Sequence[int]] | None = None,
  stem_stride: int = 2,
  expand: int = 6,
  dtype: str = "float32",
) -> Model:
  """A network of depthwise convolutions, MobileNet-V1 or V2.

  A 3x3 stem, then stages of blocks whose 3x3 convolutions see one channel each; version 2 ends with
  a pointwise convolution to 1,280 channels. Batch normalisation is as in `resnet`; activations are
  min(max(x, 0), 6).

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    version: 1, separable convolutions; or 2, inverted bottlenecks.
    width: times all channels, each then at least 8; version 2's last only where above 1.
    stages: (channels, blocks, stride of the first) of each; those of the paper where None.
    stem_stride: 2, or 1 for small images.
    expand: inner channels over outer ones from the second stage on, of version 2.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, running statistics, the head and the
      logits are float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled, the same as hidden) and features
    ("stage1", "stage2", ...).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> stages = ((16, 1, 1), (24, 2, 2))
    >>> model = mobilenet(num_classes=10, image_shape=(8, 8, 1), stages=stages, stem_stride=1)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.features["stage2"].shape
    (2, 4, 4, 24)

  Reference:
    Howard et al., "MobileNets", 2017, https://arxiv.org/abs/1704.04861; Sandler et al.,
    "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    https://arxiv.org/abs/1801.04381
  """
  inputs = checks.image_input(image_shape)
  checks.require(version in STAGES, "version", version, "1 or 2")
  checks.positive(num_classes=num_classes, expand=expand)
  checks.require(stem_stride in (1, 2), "stem_stride", stem_stride, "1 or 2")
  checks.require(isinstance(width, int | float) and width > 0, "width", width, "a number > 0")
  rows = []
  for i, row in enumerate(STAGES[version] if stages is None else stages):
    listed = isinstance(row, tuple | list) and len(row) == 3
    checks.require(listed, f"stages[{i}]", row, "(channels, blocks, stride)")
    checks.positive(**{f"stages[{i}][{j}]": value for j, value in enumerate(row)})
    rows.append((max(8, int(row[0] * width)), *row[1:]))
  checks.require(bool(rows), "stages", stages, "at least one stage")
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _MobileNet(
      image_shape[2],
      num_classes=num_classes,
      version=version,
      stages=rows,
      stem=max(8, int(STEM * width)),
      last=int(LAST * max(width, 1.0)),
      expand=expand,
      stride=stem_stride,
      dtype=compute_dtype,
      rngs=rngs,
    )

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=num_classes)
