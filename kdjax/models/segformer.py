"""SegFormer: a transformer in four scales with a light decoder, to classify places of images."""

from __future__ import annotations

import dataclasses
import functools
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
  MapNorm,
  dropout_rngs,
  keep_branch,
  layer_norm,
  linear,
  named,
  scan_layers,
  stacked,
)
from kdjax.outputs import Head, Outputs

_TAPS = frozenset({"logits", "hidden", "head", "features"})


@dataclasses.dataclass(frozen=True)
class SegformerSpec:
  """Sizes of a SegFormer.

  Attributes:
    widths: channels of each stage.
    depths: blocks of each stage.
    heads: of attention, of each stage.
    reductions: by which keys and values are shrunk in height and width, of each stage.
    channels: of the image.
    num_classes: size of the logits.
    kernels: sides of the convolutions that begin the stages.
    strides: of these.
    mlp_ratios: hidden width of the MLPs over the channels, of each stage.
    decoder_width: channels of the decoder.
    family: for conversion.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  reductions: tuple[int, ...]
  channels: int
  num_classes: int
  kernels: tuple[int, ...] = (7, 3, 3, 3)
  strides: tuple[int, ...] = (4, 2, 2, 2)
  mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
  decoder_width: int = 256
  family: str = "segformer"

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {f"stage{i}": Depth(depth) for i, depth in enumerate(self.depths, 1)}


_norm_of = functools.partial(layer_norm, epsilon=1e-5)


def _normed(norm: nnx.LayerNorm, hidden: Array) -> Array:
  return norm(hidden.astype(jnp.float32)).astype(hidden.dtype)


class _Block(nnx.Module):
  """Attention to a shrunken map, then an MLP with a 3x3 convolution of each channel inside."""

  def __init__(self, width: int, heads: int, reduction: int, ratio: int, *, dtype, rngs: nnx.Rngs):
    general = functools.partial(nnx.LinearGeneral, dtype=dtype, rngs=rngs)
    split = (heads, width // heads)

    def project(name: str) -> nnx.LinearGeneral:
      metadata = named("embed", name, "head_dim"), named(name, "head_dim")
      return general(width, split, kernel_metadata=metadata[0], bias_metadata=metadata[1])

    self.norm_attention = _norm_of(width, rngs=rngs)
    self.query, self.key, self.value = project("heads"), project("kv_heads"), project("kv_heads")
    self.out = general(
      split,
      width,
      axis=(-2, -1),
      kernel_metadata=named("heads", "head_dim", "embed"),
      bias_metadata=named("embed"),
    )
    self.reduction = reduction
    if reduction > 1:
      size = reduction * reduction * width
      self.reduce = linear(size, width, (None, "embed"), rngs=rngs, dtype=dtype)
      self.reduce_norm = _norm_of(width, rngs=rngs)
    self.norm_mlp = _norm_of(width, rngs=rngs)
    self.up = linear(width, ratio * width, ("embed", "mlp"), rngs=rngs, dtype=dtype)
    self.mix = Depthwise(ratio * width, 3, dtype=dtype, rngs=rngs)
    self.down = linear(ratio * width, width, ("mlp", "embed"), rngs=rngs, dtype=dtype)

  def _shrunken(self, hidden: Array) -> Array:
    if self.reduction == 1:
      return hidden
    batch, height, width, channels = hidden.shape
    r = self.reduction
    cut = hidden.reshape(batch, height // r, r, width // r, r, channels).swapaxes(2, 3)
    cut = cut.reshape(batch, height // r, width // r, r * r * channels)
    return _normed(self.reduce_norm, self.reduce(cut))

  def _attend(self, hidden: Array) -> Array:
    batch, height, width, _ = hidden.shape
    other = self._shrunken(hidden)
    queries = self.query(hidden.reshape(batch, height * width, -1))
    keys, values = (
      project(other.reshape(batch, -1, other.shape[-1])) for project in (self.key, self.value)
    )
    scores = jnp.einsum("bnhk,bmhk->bhnm", queries, keys, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(scores * queries.shape[-1] ** -0.5).astype(values.dtype)
    out = self.out(jnp.einsum("bhnm,bmhk->bnhk", probs, values))
    return out.reshape(batch, height, width, -1)

  def __call__(self, hidden: Array, given: tuple[Array, Array | None]) -> tuple[Array, None]:
    rate, key = given
    rngs = None if key is None else nnx.Rngs(key)
    attended = self._attend(_normed(self.norm_attention, hidden))
    hidden = hidden + keep_branch(attended, rate, rngs)
    wide = self.mix(self.up(_normed(self.norm_mlp, hidden)))
    branch = self.down(jax.nn.gelu(wide, approximate=False))
    return hidden + keep_branch(branch, rate, rngs), None


def _blocks(block: Callable[..., _Block], depth: int, rngs: nnx.Rngs) -> _Block:
  return stacked(lambda rngs: block(rngs=rngs), depth, rngs)


class _Segformer(nnx.Module):
  def __init__(self, spec: SegformerSpec, *, drop_path: float, dtype, rngs: nnx.Rngs):
    before = spec.channels
    for i, width in enumerate(spec.widths):
      size, name = spec.kernels[i], f"stage{i + 1}"
      embed = nnx.Conv(
        before,
        width,
        (size, size),
        strides=spec.strides[i],
        padding=size // 2,
        dtype=dtype,
        # One axis only is split: see residual_network.py.
        kernel_metadata=named(None, None, None, "embed"),
        bias_metadata=named("embed"),
        rngs=rngs,
      )
      setattr(self, f"embed{i + 1}", embed)
      setattr(self, f"embed_norm{i + 1}", _norm_of(width, rngs=rngs))
      own = width, spec.heads[i], spec.reductions[i], spec.mlp_ratios[i]
      block = functools.partial(_Block, *own, dtype=dtype)
      setattr(self, name, _blocks(block, spec.depths[i], rngs))
      setattr(self, f"norm{i + 1}", _norm_of(width, rngs=rngs))
      level = linear(width, spec.decoder_width, ("embed", "mlp"), rngs=rngs, dtype=dtype)
      setattr(self, f"level{i + 1}", level)
      before = width
    wide = len(spec.widths) * spec.decoder_width
    own = {"rngs": rngs, "dtype": dtype, "use_bias": False}
    self.fuse = linear(wide, spec.decoder_width, (None, "embed"), **own)
    self.fuse_norm = MapNorm(spec.decoder_width, rngs=rngs)
    self.head = linear(spec.decoder_width, spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.depths, self.drop_path, self.dtype = spec.depths, drop_path, dtype

  def _stage(self, i: int, hidden: Array, rngs) -> Float[Array, "batch height width channel"]:
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    before, depth = sum(self.depths[: i - 1]), self.depths[i - 1]
    keys = None if rngs is None else jax.random.split(rngs.dropout(), depth)
    given = (jnp.asarray(rates[before : before + depth]), keys)
    blocks = getattr(self, f"stage{i}")
    hidden, _ = scan_layers(blocks, lambda block, x, own: block(x, own), hidden, given)
    return _normed(getattr(self, f"norm{i}"), hidden)

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.drop_path, train, rngs)
    hidden, features = image.astype(self.dtype), {}
    for i in range(1, len(self.depths) + 1):
      hidden = _normed(getattr(self, f"embed_norm{i}"), getattr(self, f"embed{i}")(hidden))
      features[f"embed{i}"] = hidden
      hidden = features[f"stage{i}"] = self._stage(i, hidden, rngs)
    batch, height, width, _ = features["stage1"].shape
    levels = []
    for i in range(len(self.depths), 0, -1):
      level = getattr(self, f"level{i}")(features[f"stage{i}"])
      shape = (batch, height, width, level.shape[-1])
      levels.append(jax.image.resize(level, shape, "bilinear", antialias=False))
    fused = self.fuse_norm(self.fuse(jnp.concatenate(levels, axis=-1)), train)
    fused = jax.nn.relu(fused).astype(jnp.float32).reshape(batch, height * width, -1)
    return Outputs(
      logits=self.head(fused) if "logits" in taps else None,
      hidden=fused if "hidden" in taps else None,
      head=Head(self.head.kernel[...], self.head.bias[...]) if "head" in taps else None,
      features=features if "features" in taps else None,
    )


def segformer(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  widths: Sequence[int] = (32, 64, 160, 256),
  depths: Sequence[int] = (2, 2, 2, 2),
  heads: Sequence[int] = (1, 2, 5, 8),
  reductions: Sequence[int] = (8, 4, 2, 1),
  stride: int = 4,
  decoder_width: int = 256,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """A classifier of places: four stages of attention, each half the size before, and a decoder.

  The stages begin with overlapping patches (a convolution) and have no positions: their MLPs, with
  a 3x3 convolution inside, see where things are. The decoder brings all stages to the size of the
  first and to one width, and mixes them at each place.

  Args:
    num_classes: V, classes of a place.
    image_shape: (height, width, channels) of `batch["image"]`.
    widths: channels of each stage; the defaults are SegFormer-B0.
    depths: blocks of each stage.
    heads: attention heads of each stage, dividing its channels.
    reductions: by which keys and values are shrunk in height and width, of each stage.
    stride: of the first patches: logits are of images that much smaller.
    decoder_width: channels of the decoder.
    drop_path: see `convnext`.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, norms, the head and the logits are
      float32.

  Returns:
    A model with the taps logits [B, T, V], hidden [B, T, D], head and features ("stage1", ...,
    after each stage's norm, and "embed1", ..., the patches that each begins with). T counts the
    places of the first stage, row by row.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range, or images whose sides the stages and
      their reductions do not divide.

  Example:
    >>> sizes = {"widths": (4, 8), "depths": (1, 1), "heads": (1, 2), "reductions": (2, 1)}
    >>> model = segformer(num_classes=3, image_shape=(16, 16, 1), decoder_width=8, **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 16, 16, 1))})
    >>> out.logits.shape
    (2, 16, 3)

  Reference:
    Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
    Transformers", NeurIPS 2021, https://arxiv.org/abs/2105.15203
  """
  checks.stages(widths=widths, depths=depths, heads=heads, reductions=reductions)
  checks.positive(num_classes=num_classes, stride=stride, decoder_width=decoder_width)
  for i, (width, own) in enumerate(zip(widths, heads, strict=True)):
    checks.require(width % own == 0, f"heads[{i}]", own, f"a divisor of the channels, {width}")
  checks.dropout_rate(drop_path, "drop_path")
  later = len(widths) - 1
  spec = SegformerSpec(
    tuple(widths),
    tuple(depths),
    tuple(heads),
    tuple(reductions),
    checks.channels(image_shape),
    num_classes,
    kernels=(2 * stride - 1,) + (3,) * later,
    strides=(stride,) + (2,) * later,
    mlp_ratios=(4,) * len(widths),
    decoder_width=decoder_width,
  )
  return segformer_model(spec, image_shape, drop_path=drop_path, dtype=dtype)


def segformer_model(
  spec: SegformerSpec,
  image_shape: tuple[int, int, int],
  *,
  drop_path: float = 0.0,
  dtype: str = "float32",
) -> Model:
  """The model of a spec on images of one size."""
  inputs, factor = checks.image_input(image_shape), 1
  for stride, reduction in zip(spec.strides, spec.reductions, strict=True):
    factor *= stride
    checks.shrinks(image_shape, factor * reduction)
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _Segformer(spec, drop_path=drop_path, dtype=compute_dtype, rngs=rngs)

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=spec.num_classes, spec=spec)
