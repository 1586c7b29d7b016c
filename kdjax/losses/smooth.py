"""A hint that forgives outliers: smooth L1 towards a standardised vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["smooth_hint"]


def smooth_hint(
  student_hidden: Float[Array, "*batch width"],
  teacher_hidden: Float[Array, "*batch width"],
  *,
  beta: float = 2.0,
  eps: float = 1e-6,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Smooth L1 between a prediction and the teacher's vector with zero mean and unit variance.

  With d the difference, d^2 / (2 beta) where |d| < beta and |d| - beta / 2 beyond; the mean over
  the width. The teacher's scale and offset, which differ from token to token, do not matter.

  Args:
    student_hidden: [..., D], the prediction, any float dtype.
    teacher_hidden: [..., D], the same shape; no gradient flows here.
    beta: > 0, where the square ends.
    eps: added to the teacher's variance.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], at least 0.

  Raises:
    KdjaxError: if the shapes differ or beta is not positive.

  Example:
    >>> teacher = jnp.array([[1.0, -1.0], [3.0, 1.0]])  # both are 1, -1 once standardised
    >>> print(smooth_hint(jnp.array([[1.0, -1.0], [5.0, 1.0]]), teacher).round(3))
    [0. 2.]

  Reference:
    Huang et al., "Generic-to-Specific Distillation of Masked Autoencoders", CVPR 2023,
    https://arxiv.org/abs/2302.14771
  """
  student, teacher = jnp.asarray(student_hidden), jnp.asarray(teacher_hidden)
  if student.shape != teacher.shape or not student.ndim:
    raise KdjaxError(
      f"smooth_hint: student_hidden has shape {student.shape} and teacher_hidden {teacher.shape};"
      " they must be equal; project the student's first"
    )
  if not beta > 0:
    raise KdjaxError(f"smooth_hint: beta is {beta}; it must be > 0")
  where = _common.check_where("smooth_hint", where, student.shape[:-1])
  student = _common.clean(student, where)
  teacher = _common.clean(jax.lax.stop_gradient(teacher), where)
  off = jnp.abs(student - jax.nn.standardize(teacher, epsilon=eps))
  values = jnp.where(off < beta, 0.5 * off**2 / beta, off - 0.5 * beta)
  return _common.masked(values.mean(-1), where)
