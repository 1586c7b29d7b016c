"""Where a token stands, and which tokens it sees: rotations, relative buckets, masks."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.models.transformer.spec import Rope


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """float32 [rotating pairs], radians per position.

  Reference:
    Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864; the "llama3" scaling is that of
    Llama 3.1 (transformers `modeling_rope_utils._compute_llama3_parameters`).
  """
  rotating = int(head_dim * rope.fraction)
  frequencies = 1.0 / rope.theta ** (np.arange(0, rotating, 2, dtype=np.float64) / rotating)
  if rope.scaling is None:
    return frequencies.astype(np.float32)
  kind, factor, *rest = rope.scaling
  if kind == "linear":
    return (frequencies / factor).astype(np.float32)
  low_factor, high_factor, original = rest
  wavelength = 2 * math.pi / frequencies
  low, high = original / low_factor, original / high_factor
  # 0 where the wave is long (slowed down by `factor`), 1 where it is short (left alone).
  share = np.clip((original / wavelength - low_factor) / (high_factor - low_factor), 0.0, 1.0)
  between = (1 - share) * frequencies / factor + share * frequencies
  slowed = np.where(wavelength > low, frequencies / factor, between)
  return np.where(wavelength < high, frequencies, slowed).astype(np.float32)


def rope_tables(
  rope: Rope, head_dim: int, positions: Int[Array, "batch time"]
) -> tuple[Float[Array, "batch time 1 pair"], Float[Array, "batch time 1 pair"]]:
  """Cosines and sines of every position, float32, with an axis for the heads."""
  angles = positions[..., None].astype(jnp.float32) * rope_frequencies(rope, head_dim)[None, None]
  return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(
  x: Float[Array, "batch time head head_dim"], tables: tuple[Array, Array]
) -> Float[Array, "batch time head head_dim"]:
  """Rotates the pairs (i, i + pairs) of each head; what is beyond the pairs stays."""
  cos, sin = tables
  pairs = cos.shape[-1]
  x32 = x.astype(jnp.float32)
  first, second, rest = x32[..., :pairs], x32[..., pairs : 2 * pairs], x32[..., 2 * pairs :]
  turned = [first * cos - second * sin, second * cos + first * sin, rest]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def relative_bucket(
  distance: Int[Array, "*shape"], *, buckets: int, longest: int, causal: bool
) -> Int[Array, "*shape"]:
  """T5's bucket of a key's position minus the query's: exact when near, logarithmic when far.

  Reference:
    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", JMLR 2020, https://arxiv.org/abs/1910.10683
  """
  offset = jnp.zeros_like(distance)
  if causal:
    far = jnp.maximum(-distance, 0)
  else:
    buckets //= 2
    offset = jnp.where(distance > 0, buckets, 0)
    far = jnp.abs(distance)
  exact = buckets // 2
  ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(longest / exact)
  coarse = exact + (ratio * (buckets - exact)).astype(far.dtype)
  return offset + jnp.where(far < exact, far, jnp.minimum(coarse, buckets - 1))


def visible(
  query_positions: Int[Array, "batch time"],
  key_positions: Int[Array, "batch source"],
  *,
  causal: bool,
  query_segments: Int[Array, "batch time"] | None = None,
  key_segments: Int[Array, "batch source"] | None = None,
  window: int | None = None,
) -> Bool[Array, "batch 1 time source"]:
  """Which key each query sees: its own segment, the past if causal, the window if there is one.

  Positions count from the start of each segment, so within one they order its tokens.
  """
  distance = query_positions[:, :, None] - key_positions[:, None, :]
  seen = jnp.ones(distance.shape, bool)
  if causal:
    seen &= distance >= 0
  if window is not None:
    seen &= jnp.abs(distance) < window
  if query_segments is not None:
    seen &= query_segments[:, :, None] == key_segments[:, None, :]
  return seen[:, None]
