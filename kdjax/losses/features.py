"""Losses on penultimate features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["norm_direction"]


def norm_direction(
  student_features: Float[Array, "*batch width"],
  teacher_features: Float[Array, "*batch width"],
  class_means: Float[Array, "classes width"],
  labels: Int[Array, "*batch"],
  *,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""1 - <f_s, e_y> / max(\|f_s\|, \|f_t\|): turns features to the class mean, and lengthens them.

  e_y is the direction of the teacher's mean feature of class y. A feature shorter than the
  teacher's is pushed straight along e_y; a longer one is only turned.

  Args:
    student_features: [..., D], before the head, any float dtype; project them to D first if the
      student is narrower.
    teacher_features: [..., D]; only their length is used, and no gradient flows here.
    class_means: [C, D], the teacher's mean feature of each class, of any length; no gradient. A
      mean of 0 has no direction and gives the value 1.
    labels: integers [...] in 0..C-1; where `where` is False any integer is allowed. A label out of
      range elsewhere gives nan, since a traced value cannot raise.
    axis: the feature axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], between 0 and 2.

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> means = jnp.array([[2.0, 0.0], [0.0, 5.0]])
    >>> student, teacher = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
    >>> print(norm_direction(student, teacher, means, jnp.array(0)))
    0.5

  Reference:
    Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    2023, https://arxiv.org/abs/2305.17007
  """
  name = "norm_direction"
  student, teacher = jnp.asarray(student_features), jnp.asarray(teacher_features)
  _common.check_same_shape(name, "student_features", student, "teacher_features", teacher)
  student = _common.classes_last(name, student, axis)
  teacher = jax.lax.stop_gradient(_common.classes_last(name, teacher, axis))
  means = jax.lax.stop_gradient(jnp.asarray(class_means)).astype(jnp.float32)
  if means.ndim != 2 or means.shape[1] != student.shape[-1]:
    raise KdjaxError(
      f"{name}: class_means has shape {means.shape}; [classes, {student.shape[-1]}] is wanted, the "
      f"width of student_features of shape {student_features.shape}"
    )
  where = _common.check_where(name, where, student.shape[:-1])
  labels, valid = _common.check_labels(name, labels, student.shape[:-1], means.shape[0], where)
  student, teacher = _common.clean(student, where), _common.clean(teacher, where)

  mean = jnp.take(means, labels, axis=0)
  along = jnp.sum(student * mean, axis=-1) / _nonzero(_common.norm(mean))
  student_norm, teacher_norm = _common.norm(student), _common.norm(teacher)
  # At a tie the whole gradient goes to the student's own norm, where jnp.maximum would halve it.
  longest = jnp.where(student_norm >= teacher_norm, student_norm, teacher_norm)
  value = 1.0 - along / _nonzero(longest)
  return _common.masked(jnp.where(valid, value, jnp.nan), where)


def _nonzero(length: Array) -> Array:
  return jnp.where(length > 0, length, 1.0)
