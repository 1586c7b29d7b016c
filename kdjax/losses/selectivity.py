"""What channels respond to, whichever channel does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common, _maps
from kdjax.losses.resize import product, same_size

__all__ = ["neuron_selectivity"]


def neuron_selectivity(
  student_features: Float[Array, "batch height width channel"],
  teacher_features: Float[Array, "batch teacher_height teacher_width teacher_channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""Squared maximum mean discrepancy of the two sets of channels: of what they respond to.

  Every channel is a vector over the places, of length 1, and k(a, b) = (a . b)^2:
  mean k(s, s') + mean k(t, t') - 2 mean k(s, t).

  Args:
    student_features: [B, H, W, C], any float dtype.
    teacher_features: [B, H', W', C']; a larger map is averaged down to the size of the other. No
      gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], at least 0 up to rounding; 0 for equal channels in any order.

  Raises:
    KdjaxError: if these are no maps of one batch.

  Example:
    >>> student = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    >>> print(neuron_selectivity(student, student[:, ::-1]))
    [2.]

  Reference:
    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
    https://arxiv.org/abs/1707.01219
  """
  student, teacher, where = _maps.align(
    "neuron_selectivity", student_features, teacher_features, where, maps=True
  )
  student, teacher = same_size(student, teacher)
  s, t = (_maps.unit(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1) for x in (student, teacher))
  values = jax.lax.stop_gradient(_kernel(t, t)) + _kernel(s, s) - 2 * _kernel(s, t)
  return _common.masked(values, where)


def _kernel(a: Array, b: Array) -> Array:
  return _maps.example_mean(jnp.square(product("bpi,bpj->bij", a, b)))
