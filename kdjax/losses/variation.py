"""Total variation distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["total_variation"]


def total_variation(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Half the summed absolute difference of the two distributions, between 0 and 1.

  Symmetric and bounded. Its gradient vanishes where both sides are saturated on different classes,
  so it is a poor loss to start training with.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], a probability, for each position.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{total_variation(jnp.log(student), jnp.log(teacher)):.4f}")
    0.6000

  Reference:
    Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023,
    https://arxiv.org/abs/2307.15190
  """
  student, teacher, where = _common.align(
    "total_variation",
    student_logits,
    teacher_logits,
    temperature=temperature,
    axis=axis,
    where=where,
  )
  gap = jnp.abs(jax.nn.softmax(teacher) - jax.nn.softmax(student))
  return _common.masked(0.5 * jnp.sum(gap, axis=-1), where)
