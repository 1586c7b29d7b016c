"""MLP-Mixer: patches and channels take turns to be mixed, each by an MLP."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import check_segment, layer_norm, linear, read_out, scan_layers, stacked
from kdjax.outputs import Outputs

_TAPS = frozenset({"logits", "hidden", "head", "embedding", "hidden_states", "segment"})


def _normed(norm: nnx.LayerNorm, hidden: Array) -> Array:
  return norm(hidden.astype(jnp.float32)).astype(hidden.dtype)


class _Block(nnx.Module):
  def __init__(self, patches, width, *, token_width, mlp_width, dtype, rngs: nnx.Rngs):
    own = {"rngs": rngs, "dtype": dtype}
    self.norm_tokens = layer_norm(width, rngs=rngs)
    self.token_up = linear(patches, token_width, (None, "mlp"), **own)
    self.token_down = linear(token_width, patches, ("mlp", None), **own)
    self.norm_mlp = layer_norm(width, rngs=rngs)
    self.up = linear(width, mlp_width, ("embed", "mlp"), **own)
    self.down = linear(mlp_width, width, ("mlp", "embed"), **own)

  def __call__(self, hidden: Float[Array, "batch patches width"], _) -> tuple[Array, Array]:
    tokens = _normed(self.norm_tokens, hidden).swapaxes(1, 2)
    mixed = self.token_down(jax.nn.gelu(self.token_up(tokens), approximate=False))
    hidden = hidden + mixed.swapaxes(1, 2)
    wide = jax.nn.gelu(self.up(_normed(self.norm_mlp, hidden)), approximate=False)
    hidden = hidden + self.down(wide)
    return hidden, hidden


class _Mixer(nnx.Module):
  def __init__(
    self, patches, *, patch, channels, num_classes, width, depth, token_width, mlp_width, dtype,
    rngs,
  ):  # fmt: skip
    self.embed = linear(patch * patch * channels, width, (None, "embed"), rngs=rngs, dtype=dtype)
    sizes = {"token_width": token_width, "mlp_width": mlp_width, "dtype": dtype}
    self.blocks = stacked(lambda rngs: _Block(patches, width, rngs=rngs, **sizes), depth, rngs)
    self.norm = layer_norm(width, rngs=rngs)
    self.head = linear(width, num_classes, ("embed", "vocab"), rngs=rngs)
    self.patch, self.depth, self.dtype = patch, depth, dtype

  def segment(self, hidden: Array, start: int, stop: int, *inputs: Array) -> Array:
    check_segment(start, stop, self.depth)
    return self._run(hidden.astype(self.dtype), start, stop)[0]

  def _run(self, hidden: Array, start: int = 0, stop: int | None = None):
    call = lambda block, hidden, x: block(hidden, x)  # noqa: E731
    return scan_layers(self.blocks, call, hidden, start=start, stop=stop)

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    batch, height, width, channels = image.shape
    p = self.patch
    cut = image.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
    patches = cut.reshape(batch, -1, p * p * channels)
    hidden, states = self._run(self.embed(patches.astype(self.dtype)))
    pooled = self.norm(hidden.astype(jnp.float32)).mean(1)
    out = read_out(self.head, pooled, taps)
    return dataclasses.replace(out, hidden_states=states) if "hidden_states" in taps else out


def mlp_mixer(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  patch: int = 16,
  width: int = 512,
  depth: int = 8,
  token_width: int = 256,
  mlp_width: int = 2048,
  dtype: str = "float32",
) -> Model:
  """A network of MLPs alone: in each block one over patches, then one over channels.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    patch: side of a square patch in pixels; divides height and width.
    width: channels; the defaults are Mixer-S/16.
    depth: number of blocks.
    token_width: hidden width of the MLP over patches.
    mlp_width: hidden width of the MLP over channels.
    dtype: compute dtype, "float32" or "bfloat16". Parameters, norms, the head and the logits are
      float32.

  Returns:
    A model with the taps logits, hidden, head, embedding (normed and pooled, the same as hidden),
    hidden_states [L, B, patches, D] and segment.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> sizes = {"patch": 4, "width": 16, "depth": 2, "token_width": 8, "mlp_width": 32}
    >>> model = mlp_mixer(num_classes=10, image_shape=(8, 8, 1), **sizes)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"hidden_states"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.hidden_states.shape
    (2, 2, 4, 16)

  Reference:
    Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021,
    https://arxiv.org/abs/2105.01601 (google-research/vision_transformer, vit_jax/models_mixer.py).
  """
  inputs = checks.image_input(image_shape)
  checks.positive(
    num_classes=num_classes,
    patch=patch,
    width=width,
    depth=depth,
    token_width=token_width,
    mlp_width=mlp_width,
  )
  compute_dtype = checks.compute_dtype(dtype)
  checks.shrinks(image_shape, patch)
  rows, columns, channels = image_shape

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _Mixer(
      (rows // patch) * (columns // patch),
      patch=patch,
      channels=channels,
      num_classes=num_classes,
      width=width,
      depth=depth,
      token_width=token_width,
      mlp_width=mlp_width,
      dtype=compute_dtype,
      rngs=rngs,
    )

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=num_classes)
