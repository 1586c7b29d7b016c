"""ConvNeXt: a convolutional network with the proportions and the manners of a transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import (
  Depth,
  Depthwise,
  dropout_rngs,
  keep_branch,
  layer_norm,
  linear,
  named,
  read_out,
  scan_layers,
  stacked,
)
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "embedding"})


@dataclasses.dataclass(frozen=True)
class ConvNeXtSpec:
  """Sizes of a ConvNeXt.

  Attributes:
    widths: channels of each stage.
    depths: blocks of each stage.
    channels: of the image.
    num_classes: size of the logits.
    patch: side and stride of the first convolution.
    scale: that each branch's output is multiplied with at first, learned; 0 leaves it out.
    final_eps: of the norm before the head.
    family: for conversion.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  channels: int
  num_classes: int
  patch: int = 4
  scale: float = 1e-6
  final_eps: float = 1e-6
  family: str = "convnext"

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {f"stage{i}": Depth(depth) for i, depth in enumerate(self.depths, 1)}


def _shrink(in_size, out_size, *, size, dtype, rngs) -> nnx.Conv:
  return nnx.Conv(
    in_size,
    out_size,
    (size, size),
    strides=size,
    padding=0,
    kernel_init=nnx.initializers.truncated_normal(0.02),
    dtype=dtype,
    # One axis only is split: see residual_network.py.
    kernel_metadata=named(None, None, None, "embed"),
    bias_metadata=named("embed"),
    rngs=rngs,
  )


def _normed(norm: nnx.LayerNorm, hidden: Array) -> Array:
  return norm(hidden.astype(jnp.float32)).astype(hidden.dtype)


class _Block(nnx.Module):
  """7x7 convolution of each channel, norm, a wide pointwise MLP, and a learned small scale."""

  def __init__(self, width: int, *, scale: float, dtype, rngs: nnx.Rngs):
    self.mix = Depthwise(width, 7, dtype=dtype, rngs=rngs)
    self.norm = layer_norm(width, rngs=rngs)
    self.up = linear(width, 4 * width, ("embed", "mlp"), rngs=rngs, dtype=dtype)
    self.down = linear(4 * width, width, ("mlp", "embed"), rngs=rngs, dtype=dtype)
    self.has_scale = scale > 0
    if self.has_scale:
      self.scale = nnx.Param(jnp.full((width,), scale), **named("norm"))

  def __call__(self, hidden: Array, given: tuple[Array, Array | None]) -> tuple[Array, None]:
    rate, key = given
    wide = jax.nn.gelu(self.up(_normed(self.norm, self.mix(hidden))), approximate=False)
    branch = self.down(wide)
    if self.has_scale:
      branch = branch * self.scale[...].astype(branch.dtype)[None, None, None]
    return hidden + keep_branch(branch, rate, None if key is None else nnx.Rngs(key)), None


class _Stage(nnx.Module):
  """Halves height and width, except the first; then blocks of one width."""

  def __init__(self, in_size, out_size, *, depth: int, scale, dtype, rngs):
    self.shrinks = in_size is not None
    if self.shrinks:
      self.norm = layer_norm(in_size, rngs=rngs)
      self.shrink = _shrink(in_size, out_size, size=2, dtype=dtype, rngs=rngs)
    self.blocks = stacked(
      lambda rngs: _Block(out_size, scale=scale, dtype=dtype, rngs=rngs), depth, rngs
    )

  def __call__(self, hidden: Array, rates: Array, keys) -> Array:
    if self.shrinks:
      hidden = self.shrink(_normed(self.norm, hidden))
    return scan_layers(self.blocks, lambda block, x, given: block(x, given), hidden, (rates, keys))[
      0
    ]


class _ConvNeXt(nnx.Module):
  def __init__(self, spec: ConvNeXtSpec, *, drop_path: float, dtype, rngs: nnx.Rngs):
    first = spec.widths[0]
    self.stem = _shrink(spec.channels, first, size=spec.patch, dtype=dtype, rngs=rngs)
    self.stem_norm = layer_norm(first, rngs=rngs)
    for i, (width, depth) in enumerate(zip(spec.widths, spec.depths, strict=True)):
      before = spec.widths[i - 1] if i else None
      stage = _Stage(before, width, depth=depth, scale=spec.scale, dtype=dtype, rngs=rngs)
      setattr(self, f"stage{i + 1}", stage)
    self.norm = layer_norm(spec.widths[-1], rngs=rngs, epsilon=spec.final_eps)
    self.head = linear(spec.widths[-1], spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.depths = spec.depths
    self.drop_path = drop_path
    self.dtype = dtype

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.drop_path, train, rngs)
    hidden = _normed(self.stem_norm, self.stem(image.astype(self.dtype)))
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    features, before = {}, 0
    for i, depth in enumerate(self.depths, 1):
      keys = None if rngs is None else jax.random.split(rngs.dropout(), depth)
      own = jnp.asarray(rates[before : before + depth])
      hidden = features[f"stage{i}"] = getattr(self, f"stage{i}")(hidden, own, keys)
      before += depth
    pooled = self.norm(hidden.mean((1, 2), dtype=jnp.float32))
    out = read_out(self.head, pooled, taps)
    return dataclasses.replace(out, features=features) if "features" in taps else out


def convnext(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  widths: Sequence[int] = (96, 192, 384, 768),
  depths: Sequence[int] = (3, 3, 9, 3),
  patch: int = 4,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """ConvNeXt: a patch convolution, then stages of depthwise 7x7 blocks, each half the size before.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    widths: channels of each stage; the default is ConvNeXt-T.
    depths: blocks of each stage.
    patch: side and stride of the first convolution; 1 or 2 for small images.
    drop_path: rate in [0, 1) at which the last block's branch is left out of an example, when
      training; from 0 it rises linearly over the blocks.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, norms, the head and the logits are
      float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled and normed, the same as hidden)
    and features ("stage1", "stage2", ..., after each stage's last block).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> sizes = {"widths": (4, 8), "depths": (1, 1), "patch": 2}
    >>> model = convnext(num_classes=10, image_shape=(8, 8, 1), **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.features["stage2"].shape
    (2, 2, 2, 8)

  Reference:
    Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545
  """
  checks.stages(widths=widths, depths=depths)
  checks.positive(num_classes=num_classes, patch=patch)
  inputs = checks.image_input(image_shape)
  checks.dropout_rate(drop_path, "drop_path")
  checks.compute_dtype(dtype)
  spec = ConvNeXtSpec(tuple(widths), tuple(depths), image_shape[2], num_classes, patch)
  checks.shrinks(image_shape, patch * 2 ** (len(depths) - 1))
  return convnext_model(spec, inputs, drop_path=drop_path, dtype=dtype)


def convnext_model(spec: ConvNeXtSpec, inputs, *, drop_path: float = 0.0, dtype: str) -> Model:
  """The model of a spec; `inputs` picks the image out of a batch."""
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _ConvNeXt(spec, drop_path=drop_path, dtype=compute_dtype, rngs=rngs)

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=spec.num_classes, spec=spec)
