"""MAE: a vision transformer that sees some patches, and a small one that is to rebuild the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import (
  Depth,
  layer_norm,
  linear,
  named,
  read_out,
  read_out_both,
  scan_layers,
  stacked,
)
from kdjax.models.vision_transformer import ViTSpec, _Block
from kdjax.outputs import Outputs

SEED = "mask_seed"  # of the batch
_TAPS = frozenset({"logits", "hidden", "head", "embedding", "hidden_states"})
_TAPS |= {"decoder_states", "reconstruction", "masked"}


@dataclasses.dataclass(frozen=True)
class MAESpec:
  """Sizes of a masked autoencoder.

  Attributes:
    encoder: the transformer that sees the visible patches.
    decoder: the one that sees all places; its `patch` and `image` are the encoder's.
    mask_ratio: share of the patches that are hidden.
    distilled: whether there is a distillation token with a head of its own.
  """

  encoder: ViTSpec
  decoder: ViTSpec
  mask_ratio: float
  distilled: bool = False

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {"encoder": Depth(self.encoder.depth), "decoder": Depth(self.decoder.depth)}


def sine_positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "place width"]:
  """Fixed positions: zeros for the class token, then sines and cosines of column and row.

  A quarter of the width each, the column first as in the official code; width is a multiple of 4.
  """
  rates = 1.0 / 10_000 ** (np.arange(width // 4) / (width / 4))
  row, column = np.divmod(np.arange(rows * columns), columns)
  parts = [f(place[:, None] * rates) for place in (column, row) for f in (np.sin, np.cos)]
  return np.concatenate([np.zeros((1, width)), np.concatenate(parts, 1)]).astype(np.float32)


def visible_first(
  seeds: Int[Array, "batch"], patches: int
) -> tuple[Int[Array, "batch patch"], Int[Array, "batch patch"]]:
  """Each example's own random order of its patches, and the way back.

  Args:
    seeds: of the examples, whose order depends on nothing else: every model that reads a batch
      hides the same patches.
    patches: N.

  Returns:
    (order, places): patch order[j] comes j-th; patch i lies at places[i] of that order.
  """
  keys = jax.vmap(jax.random.key)(seeds)
  noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
  order = jnp.argsort(noise, axis=1)
  return order, jnp.argsort(order, axis=1)


def _taken(tokens: Array, places: Array) -> Array:
  return jnp.take_along_axis(tokens, places[..., None], axis=1)


class _MAE(nnx.Module):
  def __init__(self, spec: MAESpec, *, dtype, rngs: nnx.Rngs):
    encoder, decoder = spec.encoder, spec.decoder
    width, inner = encoder.width, decoder.width
    pixels = encoder.patch**2 * encoder.channels
    own = {"dtype": dtype, "rngs": rngs}

    def token(size: int) -> nnx.Param:
      value = 0.02 * jax.random.normal(rngs.params(), (1, size))
      return nnx.Param(value, **named(None, "embed"))

    self.embed = linear(pixels, width, (None, "embed"), **own)
    self.class_token = token(width)
    self.encoder = stacked(
      lambda rngs: _Block(encoder, dropout=0.0, dtype=dtype, rngs=rngs), encoder.depth, rngs
    )
    self.norm = layer_norm(width, rngs=rngs, epsilon=encoder.eps)
    self.decoder_embed = linear(width, inner, (None, "embed"), **own)
    self.mask_token = token(inner)
    self.decoder = stacked(
      lambda rngs: _Block(decoder, dropout=0.0, dtype=dtype, rngs=rngs), decoder.depth, rngs
    )
    self.decoder_norm = layer_norm(inner, rngs=rngs, epsilon=decoder.eps)
    self.pixels = linear(inner, pixels, ("embed", None), rngs=rngs)
    self.head = linear(width, encoder.num_classes, ("embed", "vocab"), rngs=rngs)
    if spec.distilled:
      self.distillation_token = token(width)
      self.distillation_head = linear(width, encoder.num_classes, ("embed", "vocab"), rngs=rngs)
    self.spec, self.dtype = spec, dtype

  def __call__(self, image, seeds, *, taps, train, rngs) -> Outputs:
    spec, patch = self.spec.encoder, self.spec.encoder.patch
    rows, columns = (side // patch for side in spec.image)
    cut = image.reshape(-1, rows, patch, columns, patch, spec.channels).swapaxes(2, 3)
    tokens = self.embed(cut.reshape(len(image), rows * columns, -1).astype(self.dtype))
    positions = jnp.asarray(sine_positions(rows, columns, spec.width), self.dtype)
    tokens = tokens + positions[None, 1:]
    order = places = None
    if seeds is not None:
      order, places = visible_first(seeds, rows * columns)
      tokens = _taken(tokens, order[:, : self._visible(rows * columns)])
    first = self.class_token[...].astype(self.dtype) + positions[:1]
    tokens = jnp.concatenate([jnp.broadcast_to(first[None], (len(image), *first.shape)), tokens], 1)
    second = self.spec.distilled and seeds is None
    if second:  # the last token, without a position; no token of pre-training
      last = self.distillation_token[...].astype(self.dtype)[None]
      tokens = jnp.concatenate([tokens, jnp.broadcast_to(last, (len(image), *last.shape[1:]))], 1)
    hidden, given = self._run(self.encoder, tokens, "hidden_states" in taps)
    hidden = self.norm(hidden.astype(jnp.float32))
    out = self._read(hidden, second, taps)
    collected: dict[str, Any] = {"hidden_states": given}
    if taps & {"decoder_states", "reconstruction"}:
      collected |= self._decode(hidden, places, taps)
    if "masked" in taps:
      shape = (len(image), rows * columns)
      kept = self._visible(rows * columns)
      collected["masked"] = jnp.zeros(shape, bool) if places is None else places >= kept
    return dataclasses.replace(out, **collected)

  def _visible(self, patches: int) -> int:
    return int(patches * (1 - self.spec.mask_ratio))

  def _run(self, blocks, tokens: Array, keep: bool):
    wanted = frozenset({"hidden_states"}) if keep else frozenset()
    hidden, given = scan_layers(blocks, lambda block, x, _: block(x, None, wanted), tokens)
    return hidden, given.get("hidden_states")

  def _decode(self, hidden: Array, places: Array | None, taps) -> dict[str, Array]:
    spec = self.spec.decoder
    rows, columns = (side // self.spec.encoder.patch for side in spec.image)
    tokens = self.decoder_embed(hidden.astype(self.dtype))[:, : rows * columns + 1]
    first, rest = tokens[:, :1], tokens[:, 1:]
    if places is not None:
      hole = self.mask_token[...].astype(self.dtype)[None]
      holes = (len(rest), rows * columns - rest.shape[1], spec.width)
      rest = _taken(jnp.concatenate([rest, jnp.broadcast_to(hole, holes)], 1), places)
    positions = jnp.asarray(sine_positions(rows, columns, spec.width), self.dtype)
    tokens = jnp.concatenate([first, rest], 1) + positions[None]
    states, given = self._run(self.decoder, tokens, "decoder_states" in taps)
    out = {} if given is None else {"decoder_states": given}
    if "reconstruction" in taps:
      out["reconstruction"] = self.pixels(self.decoder_norm(states.astype(jnp.float32)))[:, 1:]
    return out

  def _read(self, hidden: Array, second: bool, taps) -> Outputs:
    if not second:
      return read_out(self.head, hidden[:, 0], taps)
    return read_out_both((self.head, self.distillation_head), hidden[:, 0], hidden[:, -1], taps)


def masked_autoencoder(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  patch: int = 2,
  width: int = 64,
  depth: int = 4,
  heads: int = 4,
  decoder_width: int = 32,
  decoder_depth: int = 2,
  decoder_heads: int = 4,
  mlp_ratio: int = 4,
  mask_ratio: float = 0.75,
  distilled: bool = False,
  dtype: str = "float32",
) -> Model:
  """A masked autoencoder, and the classifier that its encoder is made for.

  Where the batch has a `mask_seed` (see `kdjax.data.augment.mask_seed`), the encoder sees the
  patches that it leaves, else all of them. Decoder and pixels cost nothing unless asked for.
  Positions are fixed sines.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    patch: side of a square patch in pixels; divides height and width.
    width: of the encoder; a multiple of 4 and of heads.
    depth: blocks of the encoder.
    heads: its attention heads.
    decoder_width: likewise of the decoder.
    decoder_depth: likewise.
    decoder_heads: likewise.
    mlp_ratio: hidden width of the MLPs over the width.
    mask_ratio: in [0, 1), share of the patches that are hidden; N (1 - ratio) are left, rounded
      down.
    distilled: a last token beside the class token, with a head of its own, of images that are seen
      whole; see `vit` with pool = "distilled".
    dtype: compute dtype of the blocks, "float32" or "bfloat16".

  Returns:
    A model with the taps logits, hidden, head, embedding (of the class token), hidden_states (of
    the encoder), decoder_states, reconstruction and masked; where distilled distillation_logits.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> model = masked_autoencoder(num_classes=10, image_shape=(8, 8, 1))
    >>> batch = {"image": jnp.zeros((2, 8, 8, 1)), "mask_seed": jnp.arange(2)}
    >>> taps = frozenset({"reconstruction", "masked"})
    >>> out, _ = model.apply(model.init(jax.random.key(0)), batch, taps=taps)
    >>> out.reconstruction.shape, out.masked.sum(1).tolist()
    ((2, 16, 4), [12, 12])

  Reference:
    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
    https://arxiv.org/abs/2111.06377 (pengzhiliang/G2SD, models_mae.py).
  """
  channels = checks.channels(image_shape)
  checks.positive(num_classes=num_classes, patch=patch, mlp_ratio=mlp_ratio)
  rows, columns, _ = image_shape
  fits = rows % patch == 0 and columns % patch == 0
  checks.require(fits, "patch", patch, f"a divisor of the image's sides, {rows} and {columns}")
  checks.dropout_rate(mask_ratio, "mask_ratio")
  kept = int(rows // patch * (columns // patch) * (1 - mask_ratio))
  checks.require(kept > 0, "mask_ratio", mask_ratio, "one that leaves a patch")
  compute_dtype = checks.compute_dtype(dtype)

  def part(prefix: str, width: int, depth: int, heads: int) -> ViTSpec:
    checks.positive(**{f"{prefix}width": width, f"{prefix}depth": depth, f"{prefix}heads": heads})
    checks.require(width % 4 == 0, f"{prefix}width", width, "a multiple of 4")
    checks.require(width % heads == 0, f"{prefix}heads", heads, f"a divisor of width, {width}")
    return ViTSpec(
      image=(rows, columns),
      channels=channels,
      num_classes=num_classes,
      patch=patch,
      width=width,
      depth=depth,
      heads=heads,
      mlp_width=mlp_ratio * width,
      pool="cls",
      activation="gelu",
    )

  spec = MAESpec(
    part("", width, depth, heads),
    part("decoder_", decoder_width, decoder_depth, decoder_heads),
    mask_ratio,
    distilled,
  )
  image = checks.image_input(image_shape)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _MAE(spec, dtype=compute_dtype, rngs=rngs)

  return functional(
    build,
    inputs=lambda batch: (*image(batch), batch.get(SEED)),
    taps=_TAPS | ({"distillation_logits"} if distilled else frozenset()),
    num_classes=num_classes,
    spec=spec,
  )
