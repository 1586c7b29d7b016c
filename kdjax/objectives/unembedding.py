"""The backward pass of a head, its weight's gradient added up and scaled where it lies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.outputs import Head

# Classes per block: a block of a small chunk's gradient stays in a core's cache.
BLOCK = 4096


def pull_back(
  head: Head,
  hidden: Float[Array, "*batch width"],
  gradient: Float[Array, "*batch vocab"],
  total: Array,
) -> tuple[Float[Array, "*batch width"], Array]:
  """The gradient of `head.product(hidden)` by the states, and by the weight on top of `total`.

  Products are taken in the dtype of the states, as the forward one is. Accelerators get two plain
  products, into which their compilers fold the sum. One CPU gets them block by block over the
  classes: XLA would otherwise write the whole gradient again, transposed, and make an array of the
  weight's size to add. Blocks would cut the axis that a mesh may have split, hence one device.

  Args:
    head: its weight is [D, V] or [V, D].
    hidden: what it read.
    gradient: of the product, before bias and cap.
    total: as `kdjax.models.partial_sums.total_of` begins it.

  Returns:
    (gradient of the states, in their dtype; total with the gradient of the weight).
  """
  rows = hidden.reshape(-1, hidden.shape[-1])
  columns = gradient.reshape(-1, gradient.shape[-1]).astype(rows.dtype)
  whole = functools.partial(_whole, tied=head.tied)
  blocks = functools.partial(_blocks, tied=head.tied) if _one_device() else whole
  states, total = jax.lax.platform_dependent(
    rows, columns, head.weight.astype(rows.dtype), total, cpu=blocks, default=whole
  )
  return states.astype(hidden.dtype).reshape(hidden.shape), total


def scale(total: Array, factor: Array, *, tied: bool) -> Array:
  """`total * factor` for a scalar, on one CPU in place: XLA would write it to a second array."""

  def blocks(total, factor):
    axis = 0 if tied else 1
    size = min(BLOCK, total.shape[axis])

    def one(i, total):
      # Where the last block begins early, what it has in common with the one before is done.
      start = jnp.minimum(i * size, total.shape[axis] - size)
      block = jax.lax.dynamic_slice_in_dim(total, start, size, axis)
      shape = [1] * axis + [-1] + [1] * (total.ndim - axis - 1)
      new = (start + jnp.arange(size) >= i * size).reshape(shape)
      return jax.lax.dynamic_update_slice_in_dim(
        total, jnp.where(new, block * factor, block), start, axis
      )

    return jax.lax.fori_loop(0, -(-total.shape[axis] // size), one, total)

  whole = jnp.multiply
  return jax.lax.platform_dependent(
    total, factor, cpu=blocks if _one_device() else whole, default=whole
  )


def _whole(rows, columns, weight, total, *, tied: bool):
  states = _einsum("nv,vd->nd" if tied else "nv,dv->nd", columns, weight)
  operands = (columns, rows) if tied else (rows, columns)
  if total.ndim == weight.ndim:
    return states, total + _einsum("na,nb->ab", *operands).astype(total.dtype)
  parts = (x.reshape(len(total), -1, x.shape[-1]) for x in operands)
  return states, total + _einsum("sna,snb->sab", *parts).astype(total.dtype)


def _blocks(rows, columns, weight, total, *, tied: bool):
  axis = 0 if tied else 1
  classes = columns.shape[1]
  full = classes // BLOCK

  def add(start, size: int, states, total):
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    more, block = _whole(
      rows, cut(columns, axis=1), cut(weight, axis=axis), cut(total, axis=axis), tied=tied
    )
    return states + more, jax.lax.dynamic_update_slice_in_dim(total, block, start, axis)

  sums = jnp.zeros(rows.shape, jnp.float32), total
  if full:
    sums = jax.lax.fori_loop(0, full, lambda i, sums: add(i * BLOCK, BLOCK, *sums), sums)
  return add(full * BLOCK, classes % BLOCK, *sums) if classes % BLOCK else sums


def _einsum(spec: str, *operands: Array) -> Array:
  return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def _one_device() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return (jax.device_count() if mesh.empty else mesh.size) == 1
