"""Swin: a transformer of attention in windows, which shift from block to block, in four scales."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import (
  Depth,
  check_segment,
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

_TAPS = frozenset({"logits", "hidden", "head", "features", "embedding", "segment"})
_MASKED = -100.0  # as the official code has it, not minus infinity


@dataclasses.dataclass(frozen=True)
class SwinSpec:
  """Sizes of a Swin transformer.

  Attributes:
    width: channels of the first stage; each next one has twice as many.
    depths: blocks of each stage, even.
    heads: of each stage.
    channels: of the image.
    num_classes: size of the logits.
    patch: side of a patch in pixels.
    window: side of a window in patches.
    mlp_ratio: hidden width of the MLPs over a stage's.
    qkv_bias: whether the projections to queries, keys and values have biases.
    eps: of the norms in blocks and before the head.
    family: for conversion.
  """

  width: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  channels: int
  num_classes: int
  patch: int = 4
  window: int = 7
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  eps: float = 1e-5
  family: str = "swin"

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {f"stage{i}": Depth(depth // 2) for i, depth in enumerate(self.depths, 1)}


def _windows(hidden: Float[Array, "batch height width channel"], size: int) -> Array:
  """Cut into windows [batch * number, size * size, channel], row by row."""
  batch, height, width, channels = hidden.shape
  hidden = hidden.reshape(batch, height // size, size, width // size, size, channels)
  return hidden.swapaxes(2, 3).reshape(-1, size * size, channels)


def _joined(windows: Array, shape: tuple[int, int, int], size: int) -> Array:
  """What `_windows` cut, put together again."""
  batch, height, width = shape
  windows = windows.reshape(batch, height // size, width // size, size, size, -1)
  return windows.swapaxes(2, 3).reshape(batch, height, width, -1)


def _bias_index(size: int) -> np.ndarray:
  """[n, n] for n = size^2: which row of the table says how two places of a window lie."""
  rows, columns = np.divmod(np.arange(size * size), size)
  down = rows[:, None] - rows[None] + size - 1
  right = columns[:, None] - columns[None] + size - 1
  return down * (2 * size - 1) + right


def _apart(height: int, width: int, size: int, shift: int) -> np.ndarray:
  """[windows, n, n]: `_MASKED` between places that only the shift has brought into one window."""
  regions = [
    (np.arange(length) >= length - size).astype(int) + (np.arange(length) >= length - shift)
    for length in (height, width)
  ]
  region = 3 * regions[0][:, None] + regions[1][None]
  cut = region.reshape(height // size, size, width // size, size).swapaxes(1, 2)
  cut = cut.reshape(-1, size * size)
  return np.where(cut[:, :, None] != cut[:, None, :], _MASKED, 0.0).astype(np.float32)


class _Block(nnx.Module):
  """Attention in windows, then an MLP; both pre-norm."""

  def __init__(self, spec: SwinSpec, width, heads, *, window, shift, dtype, rngs):
    head = (heads, width // heads)
    general = {"dtype": dtype, "rngs": rngs}

    def project(name: str) -> nnx.LinearGeneral:
      return nnx.LinearGeneral(
        width,
        head,
        use_bias=spec.qkv_bias,
        kernel_metadata=named("embed", name, "head_dim"),
        bias_metadata=named(name, "head_dim"),
        **general,
      )

    self.norm_attention = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    self.query, self.key, self.value = project("heads"), project("kv_heads"), project("kv_heads")
    self.out = nnx.LinearGeneral(
      head,
      width,
      axis=(-2, -1),
      kernel_metadata=named("heads", "head_dim", "embed"),
      bias_metadata=named("embed"),
      **general,
    )
    table = 0.02 * jax.random.normal(rngs.params(), ((2 * window - 1) ** 2, heads))
    self.bias = nnx.Param(table, **named(None, "heads"))
    self.norm_mlp = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    wide = int(spec.mlp_ratio * width)
    self.up = linear(width, wide, ("embed", "mlp"), rngs=rngs, dtype=dtype)
    self.down = linear(wide, width, ("mlp", "embed"), rngs=rngs, dtype=dtype)
    self.window, self.shift = window, shift

  def _attend(self, hidden: Array) -> Array:
    batch, height, width, _ = hidden.shape
    size, shift = self.window, self.shift
    down, right = -height % size, -width % size
    hidden = jnp.pad(hidden, ((0, 0), (0, down), (0, right), (0, 0)))
    shape = hidden.shape[:3]
    if shift:
      hidden = jnp.roll(hidden, (-shift, -shift), axis=(1, 2))
    windows = _windows(hidden, size)
    queries, keys, values = self.query(windows), self.key(windows), self.value(windows)
    scores = jnp.einsum("bnhk,bmhk->bhnm", queries, keys, preferred_element_type=jnp.float32)
    scores = scores * queries.shape[-1] ** -0.5
    scores = scores + jnp.moveaxis(self.bias[...][_bias_index(size)], -1, 0)[None]
    if shift:
      apart = jnp.asarray(_apart(*shape[1:], size, shift))[None, :, None]
      by_image = scores.reshape(batch, -1, *scores.shape[1:]) + apart
      scores = by_image.reshape(scores.shape)
    probs = jax.nn.softmax(scores).astype(values.dtype)
    hidden = _joined(self.out(jnp.einsum("bhnm,bmhk->bnhk", probs, values)), shape, size)
    if shift:
      hidden = jnp.roll(hidden, (shift, shift), axis=(1, 2))
    return hidden[:, :height, :width]

  def __call__(self, hidden: Array, rate: Array, rngs: nnx.Rngs | None) -> Array:
    attended = self._attend(_normed(self.norm_attention, hidden))
    hidden = hidden + keep_branch(attended, rate, rngs)
    wide = jax.nn.gelu(self.up(_normed(self.norm_mlp, hidden)), approximate=False)
    return hidden + keep_branch(self.down(wide), rate, rngs)


def _normed(norm: nnx.LayerNorm, hidden: Array) -> Array:
  return norm(hidden.astype(jnp.float32)).astype(hidden.dtype)


class _Pair(nnx.Module):
  """A block of windows as they lie, and one of windows shifted by half of one."""

  def __init__(self, spec: SwinSpec, width, heads, *, window, shift, dtype, rngs):
    own = {"window": window, "dtype": dtype, "rngs": rngs}
    self.plain = _Block(spec, width, heads, shift=0, **own)
    self.shifted = _Block(spec, width, heads, shift=shift, **own)

  def __call__(self, hidden: Array, given) -> tuple[Array, None]:
    rates, key = given
    rngs = None if key is None else nnx.Rngs(key)
    for i, block in enumerate((self.plain, self.shifted)):
      hidden = block(hidden, rates[i], rngs)
    return hidden, None


def _stage(pair: Callable[..., _Pair], pairs: int, rngs: nnx.Rngs) -> _Pair:
  return stacked(lambda rngs: pair(rngs=rngs), pairs, rngs)


class _Merge(nnx.Module):
  """Four neighbours become one patch of twice the channels."""

  def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
    self.norm = layer_norm(4 * width, rngs=rngs, epsilon=1e-5)
    self.reduce = linear(
      4 * width, 2 * width, (None, "embed"), rngs=rngs, dtype=dtype, use_bias=False
    )

  def __call__(self, hidden: Float[Array, "batch height width channel"]) -> Array:
    _, height, width, _ = hidden.shape
    hidden = jnp.pad(hidden, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    parts = [hidden[:, row::2, column::2] for column in range(2) for row in range(2)]
    return self.reduce(_normed(self.norm, jnp.concatenate(parts, axis=-1)))


class _Swin(nnx.Module):
  def __init__(self, spec: SwinSpec, image_shape, *, drop_path: float, dtype, rngs: nnx.Rngs):
    patch = spec.patch
    self.embed = linear(
      patch * patch * spec.channels, spec.width, (None, "embed"), rngs=rngs, dtype=dtype
    )
    self.embed_norm = layer_norm(spec.width, rngs=rngs, epsilon=1e-5)
    side = min(image_shape[:2]) // patch
    width = spec.width
    for i, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True), 1):
      # A map no larger than a window is one window, and nothing is shifted.
      window, shift = (side, 0) if side <= spec.window else (spec.window, spec.window // 2)
      pair = functools.partial(_Pair, spec, width, heads, window=window, shift=shift, dtype=dtype)
      setattr(self, f"stage{i}", _stage(pair, depth // 2, rngs))
      if i < len(spec.depths):
        setattr(self, f"merge{i}", _Merge(width, dtype=dtype, rngs=rngs))
        side, width = -(-side // 2), 2 * width
    self.norm = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    self.head = linear(width, spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.depths = spec.depths
    self.patch = patch
    self.drop_path = drop_path
    self.dtype = dtype

  def _stage(self, i: int, hidden: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Stage i from 0 on the map that leaves the one before, or on the embedded patches."""
    if i:
      hidden = getattr(self, f"merge{i}")(hidden)
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    before, depth = sum(self.depths[:i]), self.depths[i]
    own = jnp.asarray(rates[before : before + depth].reshape(-1, 2))
    keys = None if rngs is None else jax.random.split(rngs.dropout(), depth // 2)
    stage = getattr(self, f"stage{i + 1}")
    return scan_layers(stage, lambda pair, hidden, x: pair(hidden, x), hidden, (own, keys))[0]

  def segment(
    self, hidden: Float[Array, "batch height width channel"], start: int, stop: int, *inputs: Array
  ) -> Array:
    check_segment(start, stop, len(self.depths))
    for i in range(start, stop):
      hidden = self._stage(i, hidden.astype(self.dtype))
    return hidden

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.drop_path, train, rngs)
    batch, height, width, channels = image.shape
    p = self.patch
    cut = image.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
    patches = cut.reshape(batch, height // p, width // p, p * p * channels)
    hidden = _normed(self.embed_norm, self.embed(patches.astype(self.dtype)))
    features = {}
    for i in range(len(self.depths)):
      hidden = features[f"stage{i + 1}"] = self._stage(i, hidden, rngs)
    pooled = self.norm(hidden.astype(jnp.float32)).mean((1, 2))
    out = read_out(self.head, pooled, taps)
    return dataclasses.replace(out, features=features) if "features" in taps else out


def swin(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  width: int = 96,
  depths: Sequence[int] = (2, 2, 6, 2),
  heads: Sequence[int] = (3, 6, 12, 24),
  patch: int = 4,
  window: int = 7,
  mlp_ratio: float = 4.0,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """A hierarchical transformer: attention in shifted windows, merging patches from stage to stage.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    width: channels of the first stage, doubled by each next; the defaults are Swin-T.
    depths: blocks of each stage, even: every second one has its windows shifted.
    heads: attention heads of each stage, dividing its channels.
    patch: side of a patch in pixels.
    window: side of a window in patches.
    mlp_ratio: hidden width of the MLPs over the channels.
    drop_path: see `convnext`.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, norms, the head and the logits are
      float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (normed and pooled, the same as hidden),
    features ("stage1", "stage2", ..., each before patches are merged) and segment, whose layers are
    the stages, each with the merging before it: `segment(features["stage1"], 1, 2)` is
    `features["stage2"]`.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> sizes = {"width": 8, "depths": (2, 2), "heads": (2, 4), "patch": 2, "window": 4}
    >>> model = swin(num_classes=10, image_shape=(16, 16, 1), **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"features"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 16, 16, 1))}, taps=taps)
    >>> out.features["stage2"].shape
    (2, 4, 4, 16)

  Reference:
    Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
    2021, https://arxiv.org/abs/2103.14030 (microsoft/Swin-Transformer).
  """
  checks.stages(depths=depths, heads=heads)
  checks.positive(num_classes=num_classes, width=width, patch=patch, window=window)
  for i, (depth, own) in enumerate(zip(depths, heads, strict=True)):
    checks.require(depth % 2 == 0, f"depths[{i}]", depth, "an even number of blocks")
    size = width * 2**i
    checks.require(size % own == 0, f"heads[{i}]", own, f"a divisor of the channels, {size}")
  checks.dropout_rate(drop_path, "drop_path")
  spec = SwinSpec(
    width,
    tuple(depths),
    tuple(heads),
    checks.channels(image_shape),
    num_classes,
    patch=patch,
    window=window,
    mlp_ratio=mlp_ratio,
  )
  return swin_model(spec, image_shape, drop_path=drop_path, dtype=dtype)


def swin_model(
  spec: SwinSpec, image_shape: tuple[int, int, int], *, drop_path: float = 0.0, dtype: str
) -> Model:
  """The model of a spec on images of one size."""
  inputs = checks.image_input(image_shape)
  checks.shrinks(image_shape, spec.patch)
  if image_shape[0] != image_shape[1]:
    raise KdjaxError(f"model field 'image_shape' is {image_shape}; swin wants square images")
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _Swin(spec, image_shape, drop_path=drop_path, dtype=compute_dtype, rngs=rngs)

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=spec.num_classes, spec=spec)
