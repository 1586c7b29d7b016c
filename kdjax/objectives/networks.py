"""The small networks that objectives learn: plain functions on nested dicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Params = dict[str, dict[str, Array]]


def init_mlp(rng: Key[Array, ""], sizes: Sequence[int]) -> Params:
  """Weights of a fully connected network: kernels normal with variance 1 / fan-in, biases 0.

  Args:
    rng: a key.
    sizes: widths from input to output, at least two.

  Returns:
    {"layer0": {"kernel": [in, out], "bias": [out]}, ...}.
  """
  keys = jax.random.split(rng, len(sizes) - 1)
  return {
    f"layer{i}": {
      "kernel": jax.random.normal(key, (fan_in, fan_out)) * fan_in**-0.5,
      "bias": jnp.zeros(fan_out),
    }
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
    x = x @ layer["kernel"]
    x = x + jnp.broadcast_to(layer["bias"], x.shape)
  return x


def normalize(
  x: Float[Array, "*batch width"], *, axis: int = -1, eps: float = 1e-5
) -> Float[Array, "*batch width"]:
  """Zero mean and unit variance along `axis`, without a learned scale."""
  return jax.nn.standardize(x, axis=axis, epsilon=eps)
