"""Features matched value by value."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common, _maps

__all__ = ["hint", "variational_information"]


def hint(
  student_features: Float[Array, "batch *feature"],
  teacher_features: Float[Array, "batch *feature"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  """The mean squared difference of two features of one shape.

  Args:
    student_features: [B, ...], any float dtype; project them first where the shapes differ.
    teacher_features: [B, ...], the same shape; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], at least 0.

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> print(hint(jnp.zeros((2, 3)), jnp.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]])))
    [1. 3.]

  Reference:
    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
  """
  student, teacher, where = _maps.align(
    "hint", student_features, teacher_features, where, same_shape=True
  )
  return _common.masked(_maps.example_mean(jnp.square(student - teacher)), where)


def variational_information(
  student_features: Float[Array, "batch *feature channel"],
  teacher_features: Float[Array, "batch *feature channel"],
  variance: Float[Array, "channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""(d^2 / v + log v) / 2: minus the log-likelihood of the teacher's feature, less a constant.

  The student's feature is the mean of a normal distribution with one variance for each channel;
  making the teacher's feature likely raises a lower bound of the information that both share.

  Args:
    student_features: [B, ..., C], the predicted mean, any float dtype.
    teacher_features: [B, ..., C], the same shape; no gradient flows here.
    variance: [C], > 0, to be learned.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], the mean over all values of a feature; it may be negative.

  Raises:
    KdjaxError: if the shapes differ, or `variance` is not one number for each channel.

  Example:
    >>> x = jnp.zeros((1, 2, 3))
    >>> print(variational_information(x, x, jnp.full(3, jnp.e)))
    [0.5]

  Reference:
    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
    https://arxiv.org/abs/1904.05835
  """
  name = "variational_information"
  student, teacher, where = _maps.align(
    name, student_features, teacher_features, where, same_shape=True
  )
  variance = per_channel(name, "variance", variance, student)
  values = 0.5 * (jnp.square(student - teacher) / variance + jnp.log(variance))
  return _common.masked(_maps.example_mean(values), where)


def per_channel(loss: str, name: str, values, features: Array) -> Array:
  """Numbers of channels, in the shape of the features that they belong to."""
  values = jnp.asarray(values).astype(jnp.float32)
  if values.shape != features.shape[-1:]:
    raise KdjaxError(
      f"{loss}: {name} has shape {values.shape}; ({features.shape[-1]},) is wanted, the channels of"
      f" student_features of shape {features.shape}"
    )
  return jnp.broadcast_to(values, features.shape)
