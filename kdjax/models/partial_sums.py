"""Gradients of large tables, added up by each device for itself before they travel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax.models.layers import SEQUENCE_AXIS, row_axes, sequence_parts


def total_of(weight: Array, shape: tuple[int, ...]) -> Array:
  """Zeros to add the gradient of a weight to, chunk by chunk; see `summed`.

  On a mesh that splits rows each part of them has a sum of its own, [parts, *weight.shape], until
  all chunks are done: the gradient then travels once and not with every chunk. It is as large on
  each device as the weight that is gathered there to take the products.

  Args:
    weight: [D, V] or [V, D].
    shape: of the positions in a chunk's layout, (B,) or (rows, places); chunks of (B,) cut rows
      themselves, and those of a mesh that does not divide B cannot be told apart: they share one
      sum of the weight's shape.
  """
  ways = parts()[1]
  return _zeros(weight, len(shape) > 1 and shape[0] % ways == 0)


def summed(total: Array, weight: Array) -> Array:
  """The gradient of a weight from what `pull_back` has added up, in its shape and dtype.

  The last axis is added up first: along it weights are split, so that of its sum each device keeps
  a slice, and only slices travel along the other.
  """
  if total.ndim > weight.ndim:
    axes, _ = parts()
    mesh = jax.sharding.get_abstract_mesh()
    total = total.reshape(*(mesh.shape[axis] for axis in axes), *weight.shape)
    for last in reversed(range(len(axes))):
      total = total.sum(last)
      own = PartitionSpec(*axes[:last], *[PartitionSpec.UNCONSTRAINED] * weight.ndim)
      total = jax.lax.with_sharding_constraint(total, own)
  return total.astype(weight.dtype)


def parts() -> tuple[tuple[str, ...], int]:
  """The axes that positions lie along, places first as in a chunk; how many parts they make."""
  axes, ways = row_axes()
  places = sequence_parts()
  return (SEQUENCE_AXIS, *axes) if places > 1 else axes, ways * places


def _zeros(weight: Array, split: bool) -> Array:
  dtype = jnp.float32 if weight.dtype.itemsize < 4 else weight.dtype
  axes, ways = parts()
  if not split or ways == 1:
    return jnp.zeros(weight.shape, dtype)
  own = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * weight.ndim)
  return jax.lax.with_sharding_constraint(jnp.zeros((ways, *weight.shape), dtype), own)


def in_slices() -> bool:
  """Whether positions are split along the axis that weights are, too: slices of sums then do."""
  return "fsdp" in parts()[0]


def scattered(
  table: Float[Array, "vocab width"],
  tokens: Int[Array, "batch time"],
  rows: Float[Array, "batch time width"],
) -> Float[Array, "vocab width"]:
  """The gradient of a table by its rows of the tokens, in its shape and dtype.

  XLA by itself adds up whole tables over all devices, of which each then keeps a slice; see
  `summed`.
  """
  axes, ways = parts()
  along = sequence_parts()
  ways //= along
  total = _zeros(table, tokens.shape[0] % ways == 0 and tokens.shape[1] % along == 0)
  if total.ndim == table.ndim:
    return total.at[tokens].add(rows.astype(total.dtype)).astype(table.dtype)
  own = PartitionSpec(axes)

  def split(x):
    """[B, T, ...] to [parts, positions of one, ...], in the order of `parts`."""
    rest = x.shape[2:]
    x = x.reshape(ways, x.shape[0] // ways, along, x.shape[1] // along, *rest)
    x = jnp.moveaxis(x, 2, 0).reshape(len(total), -1, *rest)
    return jax.lax.with_sharding_constraint(x, own)

  def add(total, tokens, rows):
    return total.at[tokens].add(rows.astype(total.dtype))

  return summed(jax.vmap(add)(total, split(tokens), split(rows)), table)
