"""Which way features point at each place of an image, whatever their lengths."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common, _maps

__all__ = ["direction_distance"]


def direction_distance(
  student_features: Float[Array, "batch height width channel"],
  teacher_features: Float[Array, "batch height width channel"],
  *,
  centred: bool = False,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  """The squared distance of vectors of length 1, summed over the places of two maps.

  It is twice the sum of 1 - cosine. `centred` first takes each channel's mean over the places away
  from both maps. That is the same as a discrete cosine transform without its constant, which the
  official code does: small differences between places then count that one strong channel would
  hide.

  Args:
    student_features: [B, H, W, C], any float dtype.
    teacher_features: [B, H, W, C]; no gradient flows here.
    centred: see above. Static.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], from 0 to 4 H W.

  Raises:
    KdjaxError: if these are no maps of one shape.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
    >>> print(direction_distance(x, 3 * x[:, :, ::-1]))
    [4.]

  Reference:
    Fan et al., "ScaleKD: Strong Vision Transformers Could Be Excellent Teachers", NeurIPS 2024,
    https://arxiv.org/abs/2411.06786 (deep-optimization/ScaleKD, mmcls/models/dis_losses/fmdv2.py,
    `get_spat_loss` and `get_freq_loss` without their weights)
  """
  student, teacher, where = _maps.align(
    "direction_distance", student_features, teacher_features, where, same_shape=True, maps=True
  )
  if centred:
    student, teacher = (x - x.mean((1, 2), keepdims=True) for x in (student, teacher))
  apart = jnp.square(_maps.unit(student) - _maps.unit(teacher))
  return _common.masked(apart.sum((1, 2, 3)), where)
