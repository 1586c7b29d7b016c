"""The residual network for small images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import linear, named, read_out
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "preactivations", "embedding"})
_STAGES = ("stage1", "stage2", "stage3")


class ConvNorm(nnx.Module):
  """Convolution without bias, then batch normalisation."""

  def __init__(self, in_size: int, out_size: int, *, size: int, stride: int, dtype, rngs):
    self.conv = nnx.Conv(
      in_size,
      out_size,
      (size, size),
      strides=stride,
      padding=size // 2,
      use_bias=False,
      kernel_init=nnx.initializers.he_normal(),
      dtype=dtype,
      # One named axis only: with both channel axes split, on a mesh that also splits the batch,
      # XLA's partitioner returned wrong gradients of the convolutions (right loss, no warning).
      kernel_metadata=named(None, None, None, "embed"),
      rngs=rngs,
    )
    self.norm = nnx.BatchNorm(
      out_size,
      momentum=0.9,
      scale_metadata=named("norm"),
      bias_metadata=named("norm"),
      rngs=rngs,
    )

  def __call__(self, hidden: Array, train: bool) -> Array:
    hidden = self.conv(hidden)
    # Statistics and their use stay in float32 whatever the compute dtype.
    normed = self.norm(hidden.astype(jnp.float32), use_running_average=not train)
    return normed.astype(hidden.dtype)


class _Block(nnx.Module):
  def __init__(self, in_size: int, out_size: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
    self.first = ConvNorm(in_size, out_size, size=3, stride=stride, dtype=dtype, rngs=rngs)
    self.second = ConvNorm(out_size, out_size, size=3, stride=1, dtype=dtype, rngs=rngs)
    self.has_shortcut = stride != 1 or in_size != out_size
    if self.has_shortcut:
      self.shortcut = ConvNorm(in_size, out_size, size=1, stride=stride, dtype=dtype, rngs=rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    """What the last activation is taken of."""
    branch = self.second(jax.nn.relu(self.first(hidden, train)), train)
    skip = self.shortcut(hidden, train) if self.has_shortcut else hidden
    return skip + branch


class _Stage(nnx.Module):
  """Basic blocks, of which the first may change the shape."""

  def __init__(self, in_size, out_size, *, blocks: int, stride: int, dtype: Any, rngs: nnx.Rngs):
    # The equal blocks are not scanned: XLA compiles a convolution inside a loop to plain code on
    # CPU, where a training step of depth 14 took over five times as long.
    self.blocks = blocks
    for i in range(blocks):
      block = _Block(
        in_size if i == 0 else out_size,
        out_size,
        stride=stride if i == 0 else 1,
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, f"block_{i}", block)

  def __call__(self, hidden: Array, train: bool) -> Float[Array, "batch height width channel"]:
    """What the last activation is taken of."""
    for i in range(self.blocks):
      before = getattr(self, f"block_{i}")(hidden, train)
      hidden = jax.nn.relu(before)
    return before


class _ResNet(nnx.Module):
  def __init__(self, channels, *, num_classes, blocks, width, dtype, rngs):
    self.stem = ConvNorm(channels, width, size=3, stride=1, dtype=dtype, rngs=rngs)
    sizes = (width, width, 2 * width, 4 * width)
    for i, name in enumerate(_STAGES):
      stride = 1 if i == 0 else 2
      stage = _Stage(sizes[i], sizes[i + 1], blocks=blocks, stride=stride, dtype=dtype, rngs=rngs)
      setattr(self, name, stage)
    self.head = linear(sizes[-1], num_classes, ("embed", "vocab"), rngs=rngs)
    self.dtype = dtype

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    hidden = jax.nn.relu(self.stem(image.astype(self.dtype), train))
    features, before = {}, {}
    for name in _STAGES:
      before[name] = getattr(self, name)(hidden, train)
      hidden = features[name] = jax.nn.relu(before[name])
    out = read_out(self.head, hidden.mean((1, 2), dtype=jnp.float32), taps)
    if "features" in taps:
      out = dataclasses.replace(out, features=features)
    if "preactivations" in taps:
      out = dataclasses.replace(out, preactivations=before)
    return out


def resnet(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  depth: int = 8,
  width: int = 16,
  dtype: str = "float32",
) -> Model:
  """A residual network in the form used for small images.

  A 3x3 stem, then three stages of (depth - 2) / 6 basic blocks with width, 2 width and 4 width
  channels; the last two halve height and width. Shortcuts that change shape are 1x1 convolutions.
  Batch normalisation follows every convolution: in training with statistics of the whole batch that
  the step sees, every row included, so a training batch must hold no padding. Running statistics
  move by 0.9 old + 0.1 new (biased variance) and are returned as the new state.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    depth: 8, 14, 20, ...: number of layers with weights on the main path, 6 n + 2.
    width: channels of the first stage.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, running statistics, the head and the
      logits are float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled, the same as hidden), features
    ("stage1" to "stage3", each after its last activation) and preactivations (the same before it).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> model = resnet(num_classes=10, image_shape=(8, 8, 1), depth=8, width=4)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.features["stage3"].shape
    (2, 2, 2, 16)

  Reference:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (section
    4.2, with projection shortcuts), https://arxiv.org/abs/1512.03385
  """
  inputs = checks.image_input(image_shape)
  checks.positive(num_classes=num_classes, depth=depth, width=width)
  checks.require(depth >= 8 and depth % 6 == 2, "depth", depth, "6 n + 2: 8, 14, 20, 26, ...")
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _ResNet(
      image_shape[2],
      num_classes=num_classes,
      blocks=(depth - 2) // 6,
      width=width,
      dtype=compute_dtype,
      rngs=rngs,
    )

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=num_classes)
