"""Sums over positions, one chunk at a time, with the gradient made on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models.layers import sequence_parts
from kdjax.models.partial_sums import summed, total_of
from kdjax.objectives.unembedding import pull_back, scale
from kdjax.outputs import Head

PyTree = Any
Values = tuple[jax.Array, dict[str, jax.Array]]


def chunked_sum(
  fn: Callable[[PyTree, PyTree, jax.Array], Values],
  inputs: PyTree,
  fixed: PyTree,
  where: jax.Array,
  weights: jax.Array,
  chunk_size: int,
  head: Head | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of a function's values over all positions, computed chunk by chunk.

  A scan under autodiff would keep what each chunk's backward pass needs, or compute it again. Here
  each chunk is differentiated as soon as its values exist, when its logits are still at hand: the
  products of a forward and a backward pass are all that is done, and nothing of a chunk outlives
  it. That needs the weights before the backward pass, which is why this is a sum.

  Args:
    fn: `fn(inputs, fixed, where) -> (values, metrics)`, position by position. What it closes over
      (a head, parameters of an objective) gets its gradient too.
    inputs: pytree of arrays with leading axes as `where`; differentiated.
    fixed: pytree of arrays with leading axes as `where`; no gradient flows here.
    where: bool [B] or [B, T]; passed on to `fn`.
    weights: of each position, bool or float; no gradient flows here.
    chunk_size: positions of the last axis of `where` per chunk, at least 1.
    head: `inputs` are then the states that it reads, and `fn` gets their logits instead; the
      gradient of its weight is added up in place, which a head that `fn` closes over cannot have.

  Returns:
    (sum of weights * values, the same of each metric; only the first has a gradient), float32.
  """
  part = jax.eval_shape(lambda x: _first(_split(x, where, chunk_size)), (inputs, fixed, where))
  if head is not None:
    loss, fn = fn, lambda product, fixed, where: loss(head.finish(product), fixed, where)
    part = jax.eval_shape(head.product, part[0]), *part[1:]
  # Parameters that `fn` closes over become arguments, so that they can be differentiated here.
  fn, closed = jax.closure_convert(fn, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), part))

  def chunk(inputs, closed, fixed, where, weights):
    values, metrics = fn(inputs, fixed, where, *closed)
    kept = {name: _weighted(values, weights) for name, values in metrics.items()}
    return _weighted(values, weights), kept

  def forward(inputs, weight, closed, fixed, where, weights):
    def one(part):
      own, *rest = part
      return chunk(own if weight is None else _with(head, weight).product(own), closed, *rest)

    return sum_chunks(one, (inputs, fixed, where, weights), where.shape, chunk_size)

  def forward_and_gradient(inputs, weight, closed, fixed, where, weights):
    parts = _split((inputs, fixed, where, weights), where, chunk_size)
    own_head = None if weight is None else _with(head, weight)

    def body(carry, part):
      sums, grad_weight, grad_closed = carry
      states, fixed, where, weights = part
      total, pull, metrics = jax.vjp(
        lambda own, closed: chunk(own, closed, fixed, where, weights),
        states if own_head is None else own_head.product(states),
        closed,
        has_aux=True,
      )
      gradient, more = pull(jnp.ones_like(total))
      if own_head is not None:
        gradient, grad_weight = pull_back(own_head, states, gradient, grad_weight)
      sums = jax.tree.map(jnp.add, sums, (total, metrics))
      return (sums, grad_weight, jax.tree.map(jnp.add, grad_closed, more)), gradient

    sums = jax.eval_shape(lambda: forward(inputs, weight, closed, fixed, where, weights))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (sums, list(closed)))
    total = None if weight is None else total_of(weight, parts[2].shape[1:])
    (sums, total, more), own = jax.lax.scan(body, (zeros[0], total, zeros[1]), parts)
    total = None if weight is None else summed(total, weight)
    return sums, (_join(own, where), total, more)

  def backward(gradients, cotangents):
    factor, _ = cotangents
    own, weight, closed = gradients
    own, closed = jax.tree.map(lambda g: (g * factor).astype(g.dtype), (own, closed))
    if head is not None:
      weight = scale(weight, factor.astype(weight.dtype), tied=head.tied)
    return own, weight, closed, None, None, None

  total = jax.custom_vjp(forward)
  total.defvjp(forward_and_gradient, backward)
  weight = None if head is None else head.weight
  return total(inputs, weight, list(closed), fixed, where, weights)


def _with(head: Head, weight: jax.Array) -> Head:
  return dataclasses.replace(head, weight=weight)


def _weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
  # Selecting before multiplying keeps inf and NaN under weight 0 out of value and gradient.
  kept = jnp.where(weights.astype(bool), values.astype(jnp.float32), 0.0)
  return (kept * weights.astype(jnp.float32)).sum()


def _split(tree: PyTree, where: jax.Array, chunk_size: int) -> PyTree:
  """Every array cut along the last axis of `where`, the cuts along a new first axis.

  Chunks run along the time axis, or along the batch axis for [B] values. Where a mesh splits the
  time axis they run along its parts, all at once. The last chunk is filled up with zeros, which is
  False for `where`.
  """
  axis = where.ndim - 1
  parts = _parts_of(where)
  length = where.shape[axis] // parts
  size = min(chunk_size, length)
  number = -(-length // size)

  def split(x):
    if parts > 1:  # a part of a row is a row of its own, [parts * B, T / parts]
      x = x.reshape(x.shape[0], parts, length, *x.shape[2:])
      x = jnp.moveaxis(x, 1, 0).reshape(-1, length, *x.shape[3:])
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, number * size - length)
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(x.shape[:axis] + (number, size) + x.shape[axis + 1 :]), axis, 0)

  return jax.tree.map(split, tree)


def _join(tree: PyTree, where: jax.Array) -> PyTree:
  """Undoes `_split`."""
  axis = where.ndim - 1
  parts = _parts_of(where)
  length = where.shape[axis] // parts

  def join(x):
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(x.shape[:axis] + (-1,) + x.shape[axis + 2 :])
    x = jax.lax.slice_in_dim(x, 0, length, axis=axis)
    if parts > 1:
      x = jnp.moveaxis(x.reshape(parts, -1, *x.shape[1:]), 0, 1)
      x = x.reshape(x.shape[0], parts * length, *x.shape[3:])
    return x

  return jax.tree.map(join, tree)


def _parts_of(where: jax.Array) -> int:
  """Into how many parts a mesh splits the time axis, where it divides it."""
  parts = sequence_parts()
  return 1 if where.ndim < 2 or where.shape[1] % parts else parts


def _first(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x[0], tree)


def map_chunks(
  fn: Callable[[PyTree], PyTree], inputs: PyTree, shape: tuple[int, ...], chunk_size: int
) -> PyTree:
  """What `fn` returns position by position, one chunk at a time, and again in the backward pass.

  Args:
    fn: from a chunk of the inputs to a pytree of arrays with its positions.
    inputs: pytree of arrays with leading axes `shape`; the last chunk is filled up with zeros.
    shape: (B,) or (B, T).
    chunk_size: positions of the last of these axes per chunk.
  """
  where = jax.ShapeDtypeStruct(shape, bool)
  return _join(jax.lax.map(jax.checkpoint(fn), _split(inputs, where, chunk_size)), where)


def sum_chunks(
  fn: Callable[[PyTree], PyTree], inputs: PyTree, shape: tuple[int, ...], chunk_size: int
) -> PyTree:
  """The sum over chunks of what `fn` returns, one chunk at a time.

  Args:
    fn: from a chunk of the inputs to a pytree of sums over its positions.
    inputs: pytree of arrays with leading axes `shape`; the last chunk is filled up with zeros,
      which `fn` must not count.
    shape: (B,) or (B, T).
    chunk_size: positions of the last of these axes per chunk.

  Returns:
    What `fn` returns, added up.
  """
  parts = _split(inputs, jax.ShapeDtypeStruct(shape, bool), chunk_size)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: fn(_first(parts)))
  )
  add = lambda total, part: (jax.tree.map(jnp.add, total, fn(part)), None)  # noqa: E731
  return jax.lax.scan(add, zeros, parts)[0]
