"""Maps brought to one size by averaging."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError

__all__ = ["average_pool", "same_size"]


def average_pool(
  maps: Float[Array, "batch height width channel"], size: tuple[int, int]
) -> Float[Array, "batch new_height new_width channel"]:
  """Averages over bins that cover the map; where a side does not divide, neighbours overlap.

  Bin i of n over h pixels reaches from floor(i h / n) to ceil((i + 1) h / n), as PyTorch's adaptive
  pooling has it.

  Args:
    maps: [B, H, W, C], float32.
    size: (height, width) wanted, each between 1 and that of the maps. Static.

  Returns:
    [B, *size, C].

  Raises:
    KdjaxError: no maps, or a size out of range.

  Example:
    >>> print(average_pool(jnp.arange(7.0).reshape(1, 7, 1, 1), (4, 1)).ravel())
    [0.5 2.  4.  5.5]
  """
  if maps.ndim != 4 or not all(0 < n <= h for n, h in zip(size, maps.shape[1:3], strict=True)):
    raise KdjaxError(
      f"average_pool: maps has shape {maps.shape} and size is {size}; maps [batch, height, width,"
      " channel] and a size within theirs are wanted"
    )
  if maps.shape[1:3] == size:
    return maps
  down, across = (_bins(old, new) for old, new in zip(maps.shape[1:3], size, strict=True))
  return product("bhwc,ih,jw->bijc", maps, down, across)


def same_size(
  a: Float[Array, "batch height width channel"], b: Float[Array, "batch height2 width2 channel2"]
) -> tuple[Array, Array]:
  """Two sets of maps, of which the larger one is averaged down, in height and width apart.

  Args:
    a: [B, H, W, C], float32.
    b: [B, H', W', C'], float32.

  Returns:
    Both, min(H, H') high and min(W, W') wide.

  Raises:
    KdjaxError: no maps.

  Example:
    >>> a, b = same_size(jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 4, 4, 5)))
    >>> a.shape, b.shape
    ((2, 4, 4, 3), (2, 4, 4, 5))
  """
  size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
  return average_pool(a, size), average_pool(b, size)


def product(subscripts: str, *arrays: Array) -> Array:
  """`einsum` in full float32: differences of the results are what counts."""
  return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)


def _bins(old: int, new: int) -> Float[Array, "new old"]:
  weights = np.zeros((new, old), np.float32)
  for i in range(new):
    start, stop = i * old // new, -(-(i + 1) * old // new)
    weights[i, start:stop] = 1 / (stop - start)
  return jnp.asarray(weights)
