"""Students that train a low-rank change of frozen weights, and teachers kept in int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.models.expressions import (
  LowRank,
  Quantized,
  column_norm,
  is_expression,
  quantize,
  resolve,
)

PyTree = Any
# The linear layers of a transformer by name, with the number of axes that each sums over.
LINEAR = {"query": 1, "key": 1, "value": 1, "out": 2, "up": 1, "gate": 1, "down": 1}


def low_rank(
  model: Model,
  *,
  rank: int = 8,
  alpha: float = 16.0,
  targets: Sequence[str] = ("query", "key", "value", "out", "gate", "up", "down"),
  dora: bool = False,
) -> Model:
  """A model whose weights are frozen and whose named linear layers get a trained low-rank change.

  Its params are the adapters alone: `down` (random) and `up` (zeros, so that it begins as the
  model it adapts). The weights are `ModelVars.frozen`: read, never trained, in no checkpoint.

  Args:
    model: a transformer with a `start`.
    rank: r, of each change.
    alpha: the change is multiplied by alpha / rank.
    targets: which linear layers of each block.
    dora: also trains the length of each output's column (DoRA).

  Returns:
    The model. `merge_adapters` gives back an ordinary one.

  Raises:
    KdjaxError: a rank or target that does not fit, or a model without weights to adapt.
  """
  if rank < 1:
    raise KdjaxError(f"rank = {rank}; wanted at least 1")
  if unknown := [name for name in targets if name not in LINEAR]:
    raise KdjaxError(f"targets = {unknown} do not exist; what does: {', '.join(LINEAR)}")
  if model.start is None:
    raise KdjaxError("an adapter needs weights to adapt; take a pretrained model")
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  kernels = kernels_of(abstract.params, targets)

  def adapters(rng: jax.Array, base: PyTree) -> PyTree:
    out = {}
    for index, (path, (array, inputs)) in enumerate(kernels.items()):
      depth, shape = array.shape[0], array.shape[1:]
      ins, outs = shape[:inputs], shape[inputs:]
      size_in, size_out = math.prod(ins), math.prod(outs)
      key = jax.random.fold_in(rng, index)
      out[path] = {
        "down": jax.random.normal(key, (depth, size_in, rank)) / jnp.sqrt(float(size_in)),
        "up": jnp.zeros((depth, rank, size_out)),
      }
      if dora:
        weight = _at(base, path)
        out[path]["magnitude"] = column_norm(weight.reshape(depth, size_in, size_out))
    return out

  def combined(params: PyTree, frozen: PyTree) -> PyTree:
    def one(path, leaf):
      own = params.get(jax.tree_util.keystr(path, simple=True, separator="/"))
      if own is None:
        return jax.lax.stop_gradient(leaf)
      return LowRank(leaf, own["down"], own["up"], own.get("magnitude"), alpha / rank)

    return jax.tree_util.tree_map_with_path(one, frozen)

  def dense(variables: ModelVars) -> ModelVars:
    return ModelVars(combined(variables.params, variables.frozen), variables.state)

  def init(rng: jax.Array) -> ModelVars:
    base = model.init(rng)
    return ModelVars(adapters(rng, base.params), base.state, base.params)

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    if dtype == "int8":
      raise KdjaxError("weights under an adapter cannot be in int8; merge the adapter first")
    placed = None if shardings is None else ModelVars(shardings.frozen, shardings.state)
    base = model.start(placed, dtype)
    own = None if shardings is None else shardings.params
    made = jax.jit(adapters, out_shardings=own)(jax.random.key(0), base.params)
    return ModelVars(made, base.state, base.params)

  def apply(variables: ModelVars, batch: Batch, **options):
    return model.apply(dense(variables), batch, **options)

  def decode(variables: ModelVars):
    return model.decode(dense(variables))

  def axes() -> ModelVars:
    whole = model.axes()
    shapes = jax.eval_shape(init, jax.random.key(0)).params
    return ModelVars(jax.tree.map(lambda _: PartitionSpec(), shapes), whole.state, whole.params)

  return model._replace(
    init=init,
    apply=apply,
    axes=axes,
    start=start,
    decode=decode if model.decode else None,
    frozen=abstract.params,
    frozen_axes=model.axes().params,
    merged=lambda variables: merge_adapters(dense(variables)),
  )


def merge_adapters(variables: ModelVars) -> ModelVars:
  """Ordinary weights in place of expressions."""
  return variables._replace(params=resolve(variables.params), frozen=())


def quantize_params(params: PyTree) -> PyTree:
  """A transformer's parameters with the linear layers of its blocks in int8."""
  kernels = kernels_of(params, tuple(LINEAR))

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return quantize(leaf, inputs=kernels[name].inputs) if name in kernels else leaf

  return jax.tree_util.tree_map_with_path(one, params)


def quantized_axes(axes: PyTree, params: PyTree) -> PyTree:
  """The axis names of `quantize_params`' result, from those of what it rounded."""

  def one(leaf, names):
    return Quantized(names, names) if isinstance(leaf, Quantized) else names

  return jax.tree.map(one, params, axes, is_leaf=is_expression)


class Kernel(NamedTuple):
  """A linear layer's weight, stacked over layers, and how many axes it sums over."""

  array: Any
  inputs: int


def kernels_of(params: PyTree, targets: Sequence[str]) -> dict[str, Kernel]:
  """Path to kernel of the linear layers in blocks that have these names."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    parts = name.split("/")
    layered = {"blocks", "copies"} & set(parts)
    if len(parts) > 2 and parts[-1] == "kernel" and parts[-2] in targets and layered:
      found[name] = Kernel(leaf, LINEAR[parts[-2]])
  if not found:
    raise KdjaxError(
      f"the model has none of the layers {', '.join(targets)} in blocks; adapters and int8 are for"
      " transformers"
    )
  return found


def _at(tree: PyTree, path: str) -> Any:
  for part in path.split("/"):
    tree = tree[part]
  return tree
