"""Layers that use the attention map of a layer before them (EchoAtt).

A map names for each layer the layer whose queries and keys it attends with: itself, or the one that
computes those of its block. The copying layers have no weights for queries and keys, and lie in a
stack of their own.

Reference:
  Rajabzadeh et al., "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language Models",
  2024, https://arxiv.org/abs/2409.14595.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from kdjax.errors import KdjaxError
from kdjax.models.expressions import resolve
from kdjax.models.layers import rows_apart

PyTree = Any
COPIED = ("query", "key", "query_norm", "key_norm")  # what a copying layer does not have


class Run(NamedTuple):
  """Blocks of one size that follow each other.

  Attributes:
    blocks: how many.
    size: layers of each.
    first: the first layer.
    source: place of the first block's first layer among those that compute attention.
    copy: place of its second layer among the copying ones.
  """

  blocks: int
  size: int
  first: int
  source: int
  copy: int


def shared_map(depth: int, *, first: int, last: int, size: int) -> tuple[int, ...]:
  """The map of EchoAtt: the outer layers keep their attention, those between share it in blocks.

  Args:
    depth: number of layers.
    first: layers at the beginning that share nothing.
    last: layers at the end that share nothing.
    size: layers of a block, k; the last block may be shorter.

  Raises:
    KdjaxError: numbers that are negative or leave no layer between.

  Example:
    >>> shared_map(8, first=2, last=1, size=3)
    (0, 1, 2, 2, 2, 5, 5, 7)
  """
  if first < 0 or last < 0 or size < 1 or first + last >= depth:
    raise KdjaxError(
      f"shared_map: first = {first}, last = {last}, size = {size} of {depth} layers; wanted at"
      " least 0, 0 and 1, and a layer between"
    )
  inner = range(first, depth - last)
  return tuple(first + (i - first) // size * size if i in inner else i for i in range(depth))


def is_map(sources: Sequence[int], local: Sequence[bool]) -> bool:
  """Whether each layer's source is itself or that of the layer before, of its own kind."""
  return all(
    source == i or (i > 0 and source == sources[i - 1] and local[i] == local[source])
    for i, source in enumerate(sources)
  )


def block_ends(sources: Sequence[int]) -> tuple[int, ...]:
  """The last layer of each block of more than one layer."""
  ends = [len(list(group)) for _, group in itertools.groupby(sources)]
  return tuple(
    last - 1 for last, size in zip(itertools.accumulate(ends), ends, strict=True) if size > 1
  )


def runs_of(sources: Sequence[int], start: int, stop: int) -> list[Run]:
  """The layers start..stop-1 as runs of equal blocks; the last block may be cut short.

  Raises:
    KdjaxError: a start inside a block.
  """
  if start < stop and sources[start] != start:
    raise KdjaxError(
      f"layer {start} uses the attention of layer {sources[start]}: begin at one that has its own"
    )
  sizes = [len(list(group)) for _, group in itertools.groupby(sources[start:stop])]
  source = sum(own == i for i, own in enumerate(sources[:start]))
  runs, first, copy = [], start, start - source
  for size, group in itertools.groupby(sizes):
    blocks = len(list(group))
    runs.append(Run(blocks, size, first, source, copy))
    first, source, copy = first + blocks * size, source + blocks, copy + blocks * (size - 1)
  return runs


def share(params: Mapping[str, PyTree], sources: Sequence[int]) -> dict[str, PyTree]:
  """The parameters of a model, for the same model with shared attention.

  Args:
    params: of a decoder or encoder whose layers all compute attention.
    sources: the map; where no layer copies, the parameters are returned as they are.
  """
  own = jnp.array([i for i, source in enumerate(sources) if source == i])
  others = jnp.array([i for i, source in enumerate(sources) if source != i])
  if not len(others):
    return dict(params)
  blocks = params["stack"]["blocks"]
  attention = {name: part for name, part in blocks["attention"].items() if name not in COPIED}
  copies = {**blocks, "attention": attention}
  stack = {
    **params["stack"],
    "blocks": jax.tree.map(lambda a: a[own], blocks),
    "copies": jax.tree.map(lambda a: a[others], copies),
  }
  return {**params, "stack": stack}


def scan_shared(
  blocks: nnx.Module,
  copies: nnx.Module,
  runs: Sequence[Run],
  call: Callable[..., tuple[Array, tuple[Any, tuple[Array, Array]]]],
  hidden: Array,
  xs: PyTree,
  remat: Callable[[Callable], Callable] | None,
) -> tuple[Array, PyTree]:
  """Runs layers with shared attention: a scan over the blocks of each run, and one inside it.

  Args:
    blocks: the layers that compute attention, stacked.
    copies: the others, stacked.
    runs: of the layers.
    call: `call(layer, hidden, x, shared) -> (hidden, (collected, (queries, keys)))`, where `shared`
      is the queries and keys of a block's first layer, and None for that layer itself.
    hidden: what the first layer reads.
    xs: pytree of arrays with a leading layer axis, those of the first run's first layer first.
    remat: of each layer.

  Returns:
    The last state, and what was collected with a leading layer axis.
  """
  wrap = remat or (lambda body: body)
  parts = [nnx.split(module, nnx.Param, ...) for module in (blocks, copies)]

  def layer(part: int, params: PyTree, hidden: Array, x: PyTree, shared):
    graphdef, _, state = parts[part]
    module = nnx.merge(graphdef, resolve(params), state)
    hidden, collected = call(module, rows_apart(hidden), x, shared)
    return rows_apart(hidden), collected

  def block(hidden: Array, inputs):
    own, others, (x, more) = inputs
    hidden, (seen, shared) = wrap(lambda h: layer(0, own, h, x, None))(hidden)

    def copying(hidden: Array, inputs):
      params, x = inputs
      hidden, (seen, _) = layer(1, params, hidden, x, shared)
      return hidden, seen

    hidden, rest = jax.lax.scan(wrap(copying), hidden, (others, more))
    return hidden, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), seen, rest)

  if not runs:
    return hidden, {}
  collected, offset = [], runs[0].first
  for run in runs:

    def cut(tree: PyTree, first: int, size: int, run: Run = run) -> PyTree:
      """[blocks, size, ...] of a stack's arrays."""
      stop = first + run.blocks * size
      return jax.tree.map(lambda a: a[first:stop].reshape(run.blocks, size, *a.shape[1:]), tree)

    whole = cut(xs, run.first - offset, run.size)
    x, more = (jax.tree.map(lambda a, at=at: a[:, at], whole) for at in (0, slice(1, None)))
    own = jax.tree.map(lambda a: a[:, 0], cut(parts[0][1], run.source, 1))
    others = cut(parts[1][1], run.copy, run.size - 1)
    hidden, seen = jax.lax.scan(block, hidden, (own, others, (x, more)))
    collected.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), seen))
  return hidden, jax.tree.map(lambda *a: jnp.concatenate(a), *collected)
