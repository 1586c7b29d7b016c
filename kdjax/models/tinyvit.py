"""TinyViT: inverted bottlenecks first, then attention in windows with a local convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

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
from kdjax.models.residual_network import ConvNorm
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features", "embedding"})
_PATCHES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class TinyViTSpec:
  """Sizes of a TinyViT.

  Attributes:
    widths: channels of each stage.
    depths: blocks of each stage; those of the first are inverted bottlenecks.
    heads: of each stage; the first one's is not used.
    windows: side of a window in places of the map; the first stage's is not used.
    channels: of the image.
    num_classes: size of the logits.
    patch: by how much the stem shrinks the image's sides: 4, 2 or 1.
    expand: inner channels of the inverted bottlenecks over a stage's.
    mlp_ratio: hidden width of the MLPs over a stage's.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  windows: tuple[int, ...]
  channels: int
  num_classes: int
  patch: int = 4
  expand: float = 4.0
  mlp_ratio: float = 4.0

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {f"stage{i}": Depth(depth) for i, depth in enumerate(self.depths, 1)}


def offset_index(size: int) -> tuple[np.ndarray, int]:
  """([n, n] for n = size^2, number of kinds): how far apart two places of a window lie.

  Kinds are pairs of absolute offsets (down, right), row by row.
  """
  rows, columns = np.divmod(np.arange(size * size), size)
  down, right = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
  return down * size + right, size * size


class _Norm(nnx.BatchNorm):
  """Batch normalisation in float32 of maps of any dtype."""

  def __init__(self, width: int, rngs: nnx.Rngs, *, scale: float = 1.0):
    super().__init__(
      width,
      momentum=0.9,
      scale_init=nnx.initializers.constant(scale),
      scale_metadata=named("norm"),
      bias_metadata=named("norm"),
      rngs=rngs,
    )

  def __call__(self, hidden: Array, train: bool) -> Array:
    normed = super().__call__(hidden.astype(jnp.float32), use_running_average=not train)
    return normed.astype(hidden.dtype)


def _gelu(x: Array) -> Array:
  return jax.nn.gelu(x, approximate=False)


class _Pointwise(nnx.Module):
  """A 1x1 convolution, as a product, and its norm."""

  def __init__(self, before: int, after: int, names, *, dtype, rngs, scale: float = 1.0):
    self.conv = linear(before, after, names, rngs=rngs, dtype=dtype, use_bias=False)
    self.norm = _Norm(after, rngs, scale=scale)

  def __call__(self, hidden: Array, train: bool) -> Array:
    return self.norm(self.conv(hidden), train)


class _Local(nnx.Module):
  """A 3x3 convolution of each channel by itself, and its norm."""

  def __init__(self, width: int, *, stride: int = 1, dtype, rngs):
    self.conv = Depthwise(width, 3, stride=stride, use_bias=False, dtype=dtype, rngs=rngs)
    self.norm = _Norm(width, rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    return self.norm(self.conv(hidden), train)


class _Bottleneck(nnx.Module):
  """Inverted: wide inside; begins as the identity."""

  def __init__(self, width: int, inner: int, *, dtype, rngs: nnx.Rngs):
    own = {"dtype": dtype, "rngs": rngs}
    self.up = _Pointwise(width, inner, ("embed", "mlp"), **own)
    self.mix = _Local(inner, **own)
    self.down = _Pointwise(inner, width, ("mlp", "embed"), scale=0.0, **own)

  def __call__(self, hidden: Array, rate: Array, rngs: nnx.Rngs | None, train: bool) -> Array:
    wide = _gelu(self.mix(_gelu(self.up(hidden, train)), train))
    return _gelu(hidden + keep_branch(self.down(wide, train), rate, rngs))


class _Attention(nnx.Module):
  """Attention in windows of a map; a learned bias for each head and absolute offset."""

  def __init__(self, width: int, heads: int, window: int, *, dtype, rngs: nnx.Rngs):
    head = (heads, width // heads)

    def project(name: str) -> nnx.LinearGeneral:
      return nnx.LinearGeneral(
        width,
        head,
        dtype=dtype,
        kernel_metadata=named("embed", name, "head_dim"),
        bias_metadata=named(name, "head_dim"),
        rngs=rngs,
      )

    self.norm = layer_norm(width, rngs=rngs, epsilon=1e-5)
    self.query, self.key, self.value = project("heads"), project("kv_heads"), project("kv_heads")
    self.out = nnx.LinearGeneral(
      head,
      width,
      axis=(-2, -1),
      dtype=dtype,
      kernel_metadata=named("heads", "head_dim", "embed"),
      bias_metadata=named("embed"),
      rngs=rngs,
    )
    kinds = offset_index(window)[1]
    self.offset_bias = nnx.Param(jnp.zeros((heads, kinds)), **named("heads", None))
    self.window = window

  def __call__(self, hidden: Float[Array, "batch height width channel"]) -> Array:
    batch, height, width, channels = hidden.shape
    size = self.window
    # Zeros fill up the last windows and are attended to, as in the official code.
    hidden = jnp.pad(hidden, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
    rows, columns = hidden.shape[1] // size, hidden.shape[2] // size
    cut = hidden.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    cut = cut.reshape(-1, size * size, channels)
    cut = self.norm(cut.astype(jnp.float32)).astype(cut.dtype)
    queries, keys, values = self.query(cut), self.key(cut), self.value(cut)
    scores = jnp.einsum("bnhk,bmhk->bhnm", queries, keys, preferred_element_type=jnp.float32)
    bias = self.offset_bias[...][:, offset_index(size)[0]]
    scores = scores * queries.shape[-1] ** -0.5 + bias[None]
    probs = jax.nn.softmax(scores).astype(values.dtype)
    out = self.out(jnp.einsum("bhnm,bmhk->bnhk", probs, values))
    out = out.reshape(batch, rows, columns, size, size, channels).swapaxes(2, 3)
    return out.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]


class _Block(nnx.Module):
  """Attention in windows, a local convolution that joins them, an MLP."""

  def __init__(self, width: int, heads: int, window: int, mlp_width: int, *, dtype, rngs):
    self.attention = _Attention(width, heads, window, dtype=dtype, rngs=rngs)
    self.local = _Local(width, dtype=dtype, rngs=rngs)
    self.norm_mlp = layer_norm(width, rngs=rngs, epsilon=1e-5)
    self.up = linear(width, mlp_width, ("embed", "mlp"), rngs=rngs, dtype=dtype)
    self.down = linear(mlp_width, width, ("mlp", "embed"), rngs=rngs, dtype=dtype)

  def __call__(self, hidden: Array, rate: Array, rngs: nnx.Rngs | None, train: bool) -> Array:
    hidden = hidden + keep_branch(self.attention(hidden), rate, rngs)
    hidden = self.local(hidden, train)
    normed = self.norm_mlp(hidden.astype(jnp.float32)).astype(hidden.dtype)
    return hidden + keep_branch(self.down(_gelu(self.up(normed))), rate, rngs)


class _Merge(nnx.Module):
  """Halves height and width on the way to the next stage's channels."""

  def __init__(self, before: int, after: int, *, dtype, rngs: nnx.Rngs):
    own = {"dtype": dtype, "rngs": rngs}
    self.widen = _Pointwise(before, after, (None, "embed"), **own)
    self.shrink = _Local(after, stride=2, **own)
    self.mix = _Pointwise(after, after, (None, "embed"), **own)

  def __call__(self, hidden: Array, train: bool) -> Array:
    hidden = _gelu(self.shrink(_gelu(self.widen(hidden, train)), train))
    return self.mix(hidden, train)


def _block_of(spec: TinyViTSpec, stage: int, dtype) -> Callable[[nnx.Rngs], nnx.Module]:
  width = spec.widths[stage]
  if stage == 0:
    inner = int(width * spec.expand)
    return lambda rngs: _Bottleneck(width, inner, dtype=dtype, rngs=rngs)
  heads, window, inner = spec.heads[stage], spec.windows[stage], int(width * spec.mlp_ratio)
  return lambda rngs: _Block(width, heads, window, inner, dtype=dtype, rngs=rngs)


class _TinyViT(nnx.Module):
  def __init__(self, spec: TinyViTSpec, *, drop_path: float, dtype, rngs: nnx.Rngs):
    own = {"dtype": dtype}
    first = spec.widths[0]
    strides = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[spec.patch]
    self.stem1 = ConvNorm(spec.channels, first // 2, size=3, stride=strides[0], rngs=rngs, **own)
    self.stem2 = ConvNorm(first // 2, first, size=3, stride=strides[1], rngs=rngs, **own)
    for i, (width, depth) in enumerate(zip(spec.widths, spec.depths, strict=True)):
      blocks = stacked(_block_of(spec, i, dtype), depth, rngs)
      setattr(self, f"stage{i + 1}", blocks)
      if i + 1 < len(spec.widths):
        merge = _Merge(width, spec.widths[i + 1], rngs=rngs, **own)
        setattr(self, f"merge{i + 1}", merge)
    self.norm = layer_norm(spec.widths[-1], rngs=rngs, epsilon=1e-5)
    self.head = linear(spec.widths[-1], spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.depths, self.drop_path, self.dtype = spec.depths, drop_path, dtype

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.drop_path, train, rngs)
    hidden = self.stem2(_gelu(self.stem1(image.astype(self.dtype), train)), train)
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    features, before = {}, 0

    def call(block, hidden, given):
      rate, key = given
      return block(hidden, rate, None if key is None else nnx.Rngs(key), train), None

    for i, depth in enumerate(self.depths, 1):
      own = jnp.asarray(rates[before : before + depth])
      keys = None if rngs is None else jax.random.split(rngs.dropout(), depth)
      hidden, _ = scan_layers(getattr(self, f"stage{i}"), call, hidden, (own, keys))
      features[f"stage{i}"] = hidden
      if i < len(self.depths):
        hidden = getattr(self, f"merge{i}")(hidden, train)
      before += depth
    pooled = self.norm(hidden.mean((1, 2), dtype=jnp.float32))
    out = read_out(self.head, pooled, taps)
    return dataclasses.replace(out, features=features) if "features" in taps else out


def tinyvit(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  widths: Sequence[int] = (96, 192, 384, 576),
  depths: Sequence[int] = (2, 2, 6, 2),
  heads: Sequence[int] = (3, 6, 12, 18),
  windows: Sequence[int] = (7, 7, 14, 7),
  patch: int = 4,
  expand: float = 4.0,
  mlp_ratio: float = 4.0,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """A small hierarchical transformer that begins with convolutions; the default is TinyViT-21M.

  A convolutional stem, a stage of inverted bottlenecks, then stages of attention in windows, each
  block with a 3x3 convolution of its own between attention and MLP. TinyViT-11M has the widths
  64, 128, 256, 448 and heads 2, 4, 8, 14; TinyViT-5M 64, 128, 160, 320 and 2, 4, 5, 10. Batch
  normalisation is as in `resnet`.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    widths: channels of each stage, the first even.
    depths: blocks of each stage.
    heads: attention heads of each stage, dividing its channels; the first is not used.
    windows: side of a window in each stage; the first is not used.
    patch: by how much the stem shrinks the sides: 4, or for small images 2 or 1.
    expand: inner channels of the inverted bottlenecks over those of the first stage.
    mlp_ratio: hidden width of the MLPs over the channels.
    drop_path: see `convnext`.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, norms, the head and the logits are
      float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (pooled and normed, the same as hidden)
    and features ("stage1", "stage2", ..., each before the map is halved).

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> sizes = {"widths": (8, 16), "depths": (1, 1), "heads": (1, 2), "windows": (4, 2)}
    >>> model = tinyvit(num_classes=10, image_shape=(8, 8, 1), patch=2, **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.features["stage2"].shape
    (2, 2, 2, 16)

  Reference:
    Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022,
    https://arxiv.org/abs/2207.10666 (microsoft/Cream, wkcn/TinyViT).
  """
  spec = TinyViTSpec(
    tuple(widths),
    tuple(depths),
    tuple(heads),
    tuple(windows),
    checks.channels(image_shape),
    num_classes,
    patch=patch,
    expand=expand,
    mlp_ratio=mlp_ratio,
  )
  return tinyvit_model(spec, image_shape, drop_path=drop_path, dtype=dtype)


def tinyvit_model(
  spec: TinyViTSpec,
  image_shape: tuple[int, int, int],
  *,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """The model of a spec on images of one size; see `tinyvit` for the rest."""
  checks.stages(depths=spec.depths, widths=spec.widths, heads=spec.heads, windows=spec.windows)
  checks.positive(num_classes=spec.num_classes)
  checks.one_of("patch", spec.patch, _PATCHES)
  checks.require(spec.widths[0] % 2 == 0, "widths[0]", spec.widths[0], "an even number")
  for i, (width, heads) in enumerate(zip(spec.widths, spec.heads, strict=True)):
    checks.require(width % heads == 0, f"heads[{i}]", heads, f"a divisor of the channels, {width}")
  for field in ("expand", "mlp_ratio"):
    checks.require(getattr(spec, field) > 0, field, getattr(spec, field), "a number > 0")
  checks.dropout_rate(drop_path, "drop_path")
  checks.shrinks(image_shape, spec.patch * 2 ** (len(spec.widths) - 1))
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _TinyViT(spec, drop_path=drop_path, dtype=compute_dtype, rngs=rngs)

  return functional(
    build,
    inputs=checks.image_input(image_shape),
    taps=_TAPS,
    num_classes=spec.num_classes,
    spec=spec,
  )
