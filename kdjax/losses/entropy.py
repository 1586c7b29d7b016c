"""Cross-entropies of the student against labels, a teacher, and a teacher-student mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["cross_entropy", "interpolated_cross_entropy", "soft_cross_entropy"]


def cross_entropy(
  logits: Float[Array, "*batch vocab"],
  labels: Int[Array, "*batch"],
  *,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""-log softmax(logits)[label]: the usual loss on integer labels.

  Args:
    logits: [..., V], unnormalised, any float dtype.
    labels: integers [...] in 0..V-1; where `where` is False any integer is allowed. A label out of
      range elsewhere gives nan, since a traced value cannot raise.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the labels are not integers of the shape [...].

  Example:
    >>> losses = cross_entropy(
    ...   jnp.zeros((2, 4)), jnp.array([3, -1]), where=jnp.array([True, False])
    ... )
    >>> print(losses.round(4))
    [1.3863 0.    ]
  """
  logits = _common.classes_last("cross_entropy", jnp.asarray(logits), axis)
  where = _common.check_where("cross_entropy", where, logits.shape[:-1])
  labels, valid = _common.check_labels(
    "cross_entropy", labels, logits.shape[:-1], logits.shape[-1], where
  )
  value = optax.losses.softmax_cross_entropy_with_integer_labels(
    _common.clean(logits, where), labels
  )
  return _common.masked(jnp.where(valid, value, jnp.nan), where)


def soft_cross_entropy(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Cross-entropy of the student against the teacher's probabilities.

  :math:`-\sum_v p_v \log q_v`. Same gradient as `forward_kl`, larger in value by the teacher's
  entropy: code that reads the value (schedules, thresholds) must know which one it gets.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> print(f"{soft_cross_entropy(jnp.zeros(4), jnp.zeros(4)):.4f}")  # log 4
    1.3863

  Reference:
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531
  """
  student, teacher, where = _common.align(
    "soft_cross_entropy",
    student_logits,
    teacher_logits,
    temperature=temperature,
    axis=axis,
    where=where,
  )
  return _common.masked(
    _common.cross_entropy_sum(jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)), where
  )


def interpolated_cross_entropy(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  mix: float | Float[Array, ""],
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Cross-entropy of the student against a target between its own distribution and the teacher's.

  The target is softmax((1 - mix) z_student + mix z_teacher), with no gradient through it: the
  inner loss of TAID. By the softened student logits the gradient is q - target, so it is 0 at
  mix = 0 and that of `forward_kl` at mix = 1. The value includes the target's entropy.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    mix: in [0, 1], the teacher's share of the target logits. May be traced.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, mix or temperature is out of range, or the teacher is a
      sparse signal.

  Example:
    >>> student, teacher = jnp.zeros(2), jnp.array([0.0, 2.0])
    >>> print(f"{interpolated_cross_entropy(student, teacher, mix=0.5):.4f}")  # log 2
    0.6931

  Reference:
    Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
    Transfer in Language Models", ICLR 2025, https://arxiv.org/abs/2501.16937
  """
  name = "interpolated_cross_entropy"
  _common.check_unit(name, "mix", mix)
  student, teacher, where = _common.align(
    name, student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  mix = jnp.asarray(mix, jnp.float32)
  own = jax.lax.stop_gradient(student)
  # A side without weight is left out, so that 0 * -inf does not arise.
  target = jnp.where(mix < 1, (1.0 - mix) * own, 0.0) + jnp.where(mix > 0, mix * teacher, 0.0)
  return _common.masked(
    _common.cross_entropy_sum(jax.nn.log_softmax(target), jax.nn.log_softmax(student)), where
  )
