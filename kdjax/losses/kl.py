"""Kullback-Leibler divergences between student and teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["forward_kl", "hinton_kd", "reverse_kl"]


def forward_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(teacher || student): the student must cover everything that the teacher does.

  :math:`\sum_v p_v (\log p_v - \log q_v)`, p the teacher and q the student, both softened by the
  temperature. No T² factor: see `hinton_kd`. Its gradient by the softened student logits is q - p.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position; +inf where the student excludes (logit -inf) a class that
    the teacher allows.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{forward_kl(jnp.log(student), jnp.log(teacher)):.4f}")
    1.1019

  Reference:
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531
  """
  student, teacher, where = _common.align(
    "forward_kl", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  return _common.masked(_common.kl(jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)), where)


def reverse_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(student || teacher): the student must stay where the teacher is, and may drop modes.

  :math:`\sum_v q_v (\log q_v - \log p_v)`, p the teacher and q the student, both softened by the
  temperature. No T² factor.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position; +inf where the teacher excludes (logit -inf) a class that
    the student allows.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{reverse_kl(jnp.log(student), jnp.log(teacher)):.4f}")
    1.0021

  Reference:
    Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
    https://arxiv.org/abs/2306.08543
  """
  student, teacher, where = _common.align(
    "reverse_kl", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  return _common.masked(_common.kl(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)), where)


def hinton_kd(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 4.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""T² KL(teacher || student), the distillation term of Hinton et al.

  The factor T² keeps the size of the gradient when the temperature changes: by the raw student
  logits it is T (q - p). For large T the loss tends to half the mean squared difference of the
  centred logits.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides and enters squared. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], T² times nats, for each position.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{hinton_kd(jnp.log(student), jnp.log(teacher), temperature=2.0):.4f}")
    1.1951

  Reference:
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531
  """
  student, teacher, where = _common.align(
    "hinton_kd", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  divergence = _common.kl(jax.nn.log_softmax(teacher), jax.nn.log_softmax(student))
  return _common.masked(jnp.square(jnp.asarray(temperature, jnp.float32)) * divergence, where)
