"""RMS and layer norm, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import named


class Norm(nnx.Module):
  """Norm over the last axis; float32 inside, the input's dtype outside."""

  def __init__(self, kind: str, size: int, eps: float, *, rngs: nnx.Rngs):
    del rngs  # starts as the identity on normalised input
    self.scale = nnx.Param(jnp.ones(size), **named("norm"))
    if kind == "layer":
      self.bias = nnx.Param(jnp.zeros(size), **named("norm"))
    self.kind = kind
    self.eps = eps

  def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    x32 = x.astype(jnp.float32)
    if self.kind == "layer":
      x32 = x32 - x32.mean(-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
    lead = (1,) * (x.ndim - 1)
    x32 = x32 * self.scale[...].astype(jnp.float32).reshape(*lead, -1)
    if self.kind == "layer":
      x32 = x32 + self.bias[...].astype(jnp.float32).reshape(*lead, -1)
    return x32.astype(x.dtype)
