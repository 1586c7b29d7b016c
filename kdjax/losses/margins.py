"""Features before the activation, of which only what passes it is matched exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common, _maps
from kdjax.losses.hints import per_channel

__all__ = ["negative_margin", "partial_l2"]


def partial_l2(
  student_features: Float[Array, "batch *feature channel"],
  teacher_features: Float[Array, "batch *feature channel"],
  margin: Float[Array, "channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""The sum of (S - max(T, m))^2, but 0 where T is not positive and S is below that target.

  T and S are features before a ReLU and m < 0 is the margin of the channel. A positive T is to be
  met; of one that is not positive it is enough to be below it, or below m if that is higher.

  Args:
    student_features: [B, ..., C], after a projector, any float dtype.
    teacher_features: [B, ..., C], before the activation; no gradient flows here.
    margin: [C], usually the mean of the teacher's negative values; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], a sum over all values of an example.

  Raises:
    KdjaxError: if the shapes differ, or `margin` is not one number for each channel.

  Example:
    >>> teacher = jnp.array([[2.0, -0.5, -3.0, -3.0]])
    >>> student = jnp.array([[1.0, -0.8, 0.0, -2.0]])
    >>> print(partial_l2(student, teacher, jnp.full(4, -1.0)))  # 1 + 0 + 1 + 0
    [2.]

  Reference:
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
    https://arxiv.org/abs/1904.01866
  """
  name = "partial_l2"
  student, teacher, where = _maps.align(
    name, student_features, teacher_features, where, same_shape=True
  )
  margin = per_channel(name, "margin", jax.lax.stop_gradient(jnp.asarray(margin)), student)
  # A margin that is not negative says nothing of positive responses.
  target = jnp.where(teacher > 0, teacher, jnp.where(teacher > margin, teacher, margin))
  counted = (teacher > 0) | (student > target)
  values = jnp.where(counted, jnp.square(student - target), 0.0)
  return _common.masked(jnp.sum(values, axis=tuple(range(1, values.ndim))), where)


def negative_margin(
  scale: Float[Array, "channel"], bias: Float[Array, "channel"]
) -> Float[Array, "channel"]:
  r"""E[x | x < 0] for x ~ N(bias, scale^2): the mean negative value behind a batch normalisation.

  Where less than a thousandth of the values would be negative it is -3 |scale|.

  Args:
    scale: [C], of the normalisation, of any sign.
    bias: [C].

  Returns:
    float32[C]; no gradient flows back.

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> print(negative_margin(jnp.array([1.0]), jnp.array([0.0])))
    [-0.7978846]

  Reference:
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
    https://arxiv.org/abs/1904.01866 (section 3.2)
  """
  scale, bias = (jax.lax.stop_gradient(jnp.asarray(x).astype(jnp.float32)) for x in (scale, bias))
  if scale.shape != bias.shape:
    raise KdjaxError(
      f"negative_margin: scale has shape {scale.shape} and bias {bias.shape}; they must be equal"
    )
  spread = jnp.abs(scale)
  z = bias / jnp.maximum(spread, 1e-6)
  share = jax.scipy.special.ndtr(-z)
  density = jnp.exp(-0.5 * jnp.square(z)) / jnp.sqrt(2 * jnp.pi).astype(jnp.float32)
  often = share > 1e-3
  mean = bias - spread * density / jnp.where(often, share, 1.0)
  return jnp.where(often, mean, -3.0 * spread)
