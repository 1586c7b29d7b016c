"""Weights that are kept in another form than the one they are used in.

A leaf of a layer's parameters may be an expression. It becomes an array inside the scan over
layers, so that one layer's array exists at a time. As parameters are stacked, all arrays of an
expression have a first axis for the layers, which is gone where one layer is computed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """int8 values with a scale for each output.

  Attributes:
    values: int8, in the weight's shape.
    scale: float32, the weight's shape with 1 for each axis that the layer sums over.
  """

  values: Int8[Array, "*weight"]
  scale: Float[Array, "*outputs"]

  def dense(self) -> Float[Array, "*weight"]:
    return self.values.astype(jnp.float32) * self.scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
  """A frozen weight with a trained change of low rank: base + scale * down @ up.

  Attributes:
    base: [*inputs, *outputs]; no gradient flows here.
    down: [inputs, rank], the input axes as one.
    up: [rank, outputs], the output axes as one.
    magnitude: DoRA's length of each output's column, [outputs]; None for LoRA.
    scale: multiplies the change.

  Reference:
    Hu et al., "LoRA", ICLR 2022, https://arxiv.org/abs/2106.09685. Liu et al., "DoRA", ICML 2024,
    https://arxiv.org/abs/2402.09353 (section 4.3: the norm is a constant for the gradient).
  """

  base: Any
  down: Float[Array, "*layer inputs rank"]
  up: Float[Array, "*layer rank outputs"]
  magnitude: Float[Array, "*layer outputs"] | None
  scale: float = dataclasses.field(metadata={"static": True})

  def dense(self) -> Float[Array, "*weight"]:
    base = self.base.dense() if isinstance(self.base, Quantized) else self.base
    base = jax.lax.stop_gradient(base)
    shape = base.shape
    flat = base.reshape(*self.down.shape[:-1], self.up.shape[-1])
    weight = flat + self.scale * jnp.matmul(self.down, self.up)
    if self.magnitude is not None:
      norm = jax.lax.stop_gradient(column_norm(weight))
      weight = weight * (self.magnitude / norm)[..., None, :]
    return weight.reshape(shape)


def column_norm(weight: Float[Array, "*layer inputs outputs"]) -> Float[Array, "*layer outputs"]:
  """The length of each output's column."""
  return jnp.sqrt(jnp.maximum(jnp.square(weight).sum(-2), 1e-12))


def is_expression(leaf: Any) -> bool:
  return isinstance(leaf, Quantized | LowRank)


def resolve(tree: PyTree) -> PyTree:
  """The tree with every expression computed."""
  return jax.tree.map(
    lambda leaf: leaf.dense() if is_expression(leaf) else leaf, tree, is_leaf=is_expression
  )


def quantize(weight: Float[Array, "layer *weight"], *, inputs: int) -> Quantized:
  """Rounds stacked weights to int8, symmetric about 0, with one scale for each output.

  Args:
    weight: [layer, *inputs, *outputs].
    inputs: number of input axes.

  Returns:
    The expression; an entry is off by at most half a step, 1/254 of its output's largest entry.
  """
  axes = tuple(range(1, 1 + inputs))
  largest = jnp.abs(weight.astype(jnp.float32)).max(axes, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1.0) / 127.0
  values = jnp.round(weight.astype(jnp.float32) / scale).astype(jnp.int8)
  return Quantized(values, scale)
