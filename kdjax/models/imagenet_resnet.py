"""The residual networks of ImageNet: ResNet-18 to ResNet-152."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import Depth, linear, read_out
from kdjax.models.residual_network import ConvNorm
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "embedding"})
_CONVOLUTIONS = {"basic": ("first", "second"), "bottleneck": ("reduce", "mix", "expand")}
_REDUCTION = 4


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
  """Sizes of an ImageNet ResNet.

  Attributes:
    widths: channels that each stage gives.
    depths: blocks of each stage.
    channels: of the image.
    num_classes: size of the logits.
    stem: channels of the first convolution.
    block: "basic", two 3x3 convolutions; "bottleneck", one between two pointwise ones.
    family: for conversion.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  channels: int
  num_classes: int
  stem: int = 64
  block: str = "bottleneck"
  family: str = "resnet"

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {}

  @property
  def convolutions(self) -> tuple[str, ...]:
    """Names of a block's convolutions, in order."""
    return _CONVOLUTIONS[self.block]

  def changes(self, stage: int) -> bool:
    """Whether a stage's first block changes the shape, so that its shortcut is a convolution."""
    return stage > 0 or self.stem != self.widths[0]


class _Block(nnx.Module):
  """The branch, the way past it, and their sum's positive part."""

  def __init__(self, spec: ResNetSpec, in_size, out_size, *, stride: int, shortcut, dtype, rngs):
    own = {"dtype": dtype, "rngs": rngs}
    if spec.block == "basic":
      layers = [(in_size, out_size, 3, stride), (out_size, out_size, 3, 1)]
    else:
      inner = out_size // _REDUCTION
      layers = [(in_size, inner, 1, 1), (inner, inner, 3, stride), (inner, out_size, 1, 1)]
    self.names = spec.convolutions
    for name, (before, after, size, step) in zip(self.names, layers, strict=True):
      setattr(self, name, ConvNorm(before, after, size=size, stride=step, **own))
    self.has_shortcut = shortcut
    if shortcut:
      self.shortcut = ConvNorm(in_size, out_size, size=1, stride=stride, **own)

  def __call__(self, hidden: Array, train: bool) -> Array:
    branch = hidden
    for name in self.names:
      branch = getattr(self, name)(branch, train)
      if name != self.names[-1]:
        branch = jax.nn.relu(branch)
    skip = self.shortcut(hidden, train) if self.has_shortcut else hidden
    return jax.nn.relu(skip + branch)


class _Stage(nnx.Module):
  def __init__(self, spec: ResNetSpec, stage: int, *, dtype, rngs: nnx.Rngs):
    before = spec.widths[stage - 1] if stage else spec.stem
    self.depth = spec.depths[stage]
    # Not scanned: see residual_network.py.
    for i in range(self.depth):
      block = _Block(
        spec,
        before if i == 0 else spec.widths[stage],
        spec.widths[stage],
        stride=2 if i == 0 and stage else 1,
        shortcut=i == 0 and spec.changes(stage),
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, f"block_{i}", block)

  def __call__(self, hidden: Array, train: bool) -> Float[Array, "batch height width channel"]:
    for i in range(self.depth):
      hidden = getattr(self, f"block_{i}")(hidden, train)
    return hidden


class _ResNet(nnx.Module):
  def __init__(self, spec: ResNetSpec, *, dtype, rngs: nnx.Rngs):
    self.stem = ConvNorm(spec.channels, spec.stem, size=7, stride=2, dtype=dtype, rngs=rngs)
    self.stages = len(spec.depths)
    for i in range(self.stages):
      setattr(self, f"stage{i + 1}", _Stage(spec, i, dtype=dtype, rngs=rngs))
    self.head = linear(spec.widths[-1], spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.dtype = dtype

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    hidden = jax.nn.relu(self.stem(image.astype(self.dtype), train))
    hidden = nnx.max_pool(hidden, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    features = {}
    for i in range(1, self.stages + 1):
      hidden = features[f"stage{i}"] = getattr(self, f"stage{i}")(hidden, train)
    out = read_out(self.head, hidden.mean((1, 2), dtype=jnp.float32), taps)
    return dataclasses.replace(out, features=features) if "features" in taps else out


def imagenet_resnet(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  widths: Sequence[int] = (256, 512, 1024, 2048),
  depths: Sequence[int] = (3, 4, 6, 3),
  stem: int = 64,
  block: str = "bottleneck",
  dtype: str = "float32",
) -> Model:
  """A residual network in the form used for ImageNet; the default is ResNet-50.

  A 7x7 convolution and a 3x3 maximum, each of stride 2, then stages, of which all but the first
  halve height and width in the 3x3 convolution of their first block ("ResNet v1.5"). Batch
  normalisation is as in `resnet`.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    widths: channels that each stage gives; ResNet-18 and 34 have (64, 128, 256, 512).
    depths: blocks of each stage: ResNet-18 has (2, 2, 2, 2), 34 and 50 (3, 4, 6, 3), 101
      (3, 4, 23, 3), 152 (3, 8, 36, 3).
    stem: channels of the first convolution.
    block: "bottleneck" from ResNet-50 on, "basic" below.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, running statistics, the head and the
      logits are float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled, the same as hidden) and features
    ("stage1", "stage2", ..., each after its last activation).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> sizes = {"widths": (4, 8), "depths": (1, 1), "stem": 4, "block": "basic"}
    >>> model = imagenet_resnet(num_classes=10, image_shape=(16, 16, 1), **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 16, 16, 1))}, taps=taps)
    >>> out.features["stage2"].shape
    (2, 2, 2, 8)

  Reference:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385
  """
  checks.channels(image_shape)
  checks.stages(widths=widths, depths=depths)
  checks.positive(num_classes=num_classes, stem=stem)
  checks.one_of("block", block, _CONVOLUTIONS)
  if block == "bottleneck":
    for i, width in enumerate(widths):
      checks.require(width % _REDUCTION == 0, f"widths[{i}]", width, f"a multiple of {_REDUCTION}")
  spec = ResNetSpec(tuple(widths), tuple(depths), image_shape[2], num_classes, stem, block)
  return imagenet_resnet_model(spec, image_shape, dtype=dtype)


def imagenet_resnet_model(
  spec: ResNetSpec, image_shape: tuple[int, int, int], *, dtype: str = "float32"
) -> Model:
  """The model of a spec on images of one size."""
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _ResNet(spec, dtype=compute_dtype, rngs=rngs)

  return functional(
    build,
    inputs=checks.image_input(image_shape),
    taps=_TAPS,
    num_classes=spec.num_classes,
    spec=spec,
  )
