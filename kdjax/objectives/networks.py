"""The small networks that objectives learn: plain functions on nested dicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Params = dict[str, dict[str, Array]]


def init_mlp(rng: Key[Array, ""], sizes: Sequence[int], *, bias: bool = True) -> Params:
  """Weights of a fully connected network: kernels normal with variance 1 / fan-in, biases 0.

  Args:
    rng: a key.
    sizes: widths from input to output, at least two.
    bias: whether layers have one.

  Returns:
    {"layer0": {"kernel": [in, out], "bias": [out]}, ...}.
  """
  keys = jax.random.split(rng, len(sizes) - 1)
  return {
    f"layer{i}": {"kernel": jax.random.normal(key, (fan_in, fan_out)) * fan_in**-0.5}
    | ({"bias": jnp.zeros(fan_out)} if bias else {})
    for i, (key, fan_in, fan_out) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
  }


def apply_mlp(
  params: Params,
  x: Float[Array, "*batch width_in"],
  *,
  activation: Callable[[Array], Array] = jax.nn.gelu,
) -> Float[Array, "*batch width_out"]:
  """The network in float32, `activation` between layers and none after the last."""
  x = x.astype(jnp.float32)
  for i in range(len(params)):
    layer = params[f"layer{i}"]
    x = activation(x) if i else x
    x = _add(layer.get("bias"), x @ layer["kernel"])
  return x


def normalize(
  x: Float[Array, "*batch width"], *, axis: int = -1, eps: float = 1e-5
) -> Float[Array, "*batch width"]:
  """Zero mean and unit variance along `axis`, without a learned scale."""
  return jax.nn.standardize(x, axis=axis, epsilon=eps)


def init_conv(
  rng: Key[Array, ""], size: tuple[int, int], fan_in: int, fan_out: int, *, bias: bool = False
) -> dict[str, Array]:
  """A convolution's {"kernel": [height, width, in, out]}, normal with variance 1 / inputs.

  With `bias` a "bias" [out] of 0 beside it.
  """
  inputs = size[0] * size[1] * fan_in
  kernel = jax.random.normal(rng, (*size, fan_in, fan_out)) * inputs**-0.5
  return {"kernel": kernel} | ({"bias": jnp.zeros(fan_out)} if bias else {})


def apply_conv(
  layer: dict[str, Array],
  x: Float[Array, "batch height width channel"],
  *,
  stride: int = 1,
  padding: int = 0,
  dilation: int = 1,
) -> Float[Array, "batch new_height new_width new_channel"]:
  """The convolution in float32; `dilation` spreads the input, which makes it a transposed one."""
  x = jax.lax.conv_general_dilated(
    x.astype(jnp.float32),
    layer["kernel"],
    (stride, stride),
    [(padding, padding)] * 2,
    lhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return _add(layer.get("bias"), x)


def init_norm(width: int) -> dict[str, Array]:
  """{"scale": 1, "bias": 0} for each channel."""
  return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def batch_norm(
  layer: dict[str, Array],
  x: Float[Array, "batch *place channel"],
  where: Bool[Array, "batch"],
  *,
  eps: float = 1e-5,
) -> Float[Array, "batch *place channel"]:
  """Batch normalisation with the statistics of the examples that count.

  No running statistics are kept: what an objective learns never runs outside training.
  """
  counted = jnp.broadcast_to(where.reshape(where.shape + (1,) * (x.ndim - 1)), x.shape)
  axes = tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axes, keepdims=True, where=counted)
  square = jnp.mean(jnp.square(x - mean), axes, keepdims=True, where=counted)
  # With no example at all both means are nan.
  mean, square = jnp.where(where.any(), mean, 0.0), jnp.where(where.any(), square, 1.0)
  x = (x - mean) * jax.lax.rsqrt(square + eps)
  return _add(layer["bias"], x * jnp.broadcast_to(layer["scale"], x.shape))


def _add(bias: Array | None, x: Array) -> Array:
  return x if bias is None else x + jnp.broadcast_to(bias, x.shape)
