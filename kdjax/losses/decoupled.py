"""Decoupled knowledge distillation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["decoupled_kd"]


def decoupled_kd(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  labels: Int[Array, "*batch"],
  *,
  alpha: float | Float[Array, ""] = 1.0,
  beta: float | Float[Array, ""] = 8.0,
  temperature: float | Float[Array, ""] = 4.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""T² (alpha TCKD + beta NCKD): forward KL split at the label, with its two parts weighted.

  TCKD is the KL between (p_y, 1 - p_y) of teacher and student; NCKD the KL between their
  distributions over the other classes. KL(p || q) = TCKD + (1 - p_y) NCKD, so that a fixed beta
  keeps the knowledge about wrong classes when the teacher is sure of the right one.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    labels: integers [...] in 0..V-1; where `where` is False any integer is allowed. A label out of
      range elsewhere gives nan, since a traced value cannot raise.
    alpha: weight of TCKD. May be traced.
    beta: weight of NCKD. May be traced.
    temperature: > 0, dimensionless; divides both sides and enters squared. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], T² times nats, for each position.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> value = decoupled_kd(
    ...   jnp.log(student), jnp.log(teacher), jnp.array(0), beta=0.3, temperature=1.0
    ... )
    >>> print(f"{value:.4f}")  # 1 - p_y is 0.3: the forward KL
    1.1019

  Reference:
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679
  """
  student, teacher, where = _common.align(
    "decoupled_kd", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  labels, valid = _common.check_labels(
    "decoupled_kd", labels, student.shape[:-1], student.shape[-1], where
  )
  pair_p, others_p = _split(teacher, labels)
  pair_q, others_q = _split(student, labels)
  target_part = _common.kl(pair_p, pair_q)
  other_part = _common.kl(others_p, others_q)
  alpha, beta = jnp.asarray(alpha, jnp.float32), jnp.asarray(beta, jnp.float32)
  value = alpha * target_part + beta * other_part
  value = jnp.square(jnp.asarray(temperature, jnp.float32)) * value
  return _common.masked(jnp.where(valid, value, jnp.nan), where)


def _split(logits: Array, labels: Array) -> tuple[Array, Array]:
  """log (p_y, 1 - p_y), and the log-probabilities among the classes other than y (y gets -inf)."""
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
  others = jnp.where(is_label, -jnp.inf, logits)
  # With one class, or all other classes at -inf, nothing is left to normalise.
  empty = jnp.max(others, axis=-1, keepdims=True) == -jnp.inf
  safe = jnp.where(empty, 0.0, others)
  log_others = jnp.where(empty, -jnp.inf, jax.nn.log_softmax(safe))
  total_others = jnp.where(empty, -jnp.inf, jax.nn.logsumexp(safe, axis=-1, keepdims=True))
  own = jnp.take_along_axis(logits, jnp.expand_dims(labels, -1), axis=-1)
  pair = jnp.concatenate([own, total_others], axis=-1)
  return jax.nn.log_softmax(pair), log_others
