"""Divergences against a mixture of student and teacher: skewed KL and Jensen-Shannon.

All of them are multiples of one sum, `_kl_to_mixture`, which stays exact when the mixture is nearly
one of its two parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["generalized_jsd", "skewed_forward_kl", "skewed_reverse_kl"]


def skewed_forward_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  alpha: float | Float[Array, ""] = 0.1,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(teacher || alpha teacher + (1 - alpha) student), bounded by log(1 / alpha).

  Mixing some of the teacher into the student bounds the loss and its gradient where the student
  gives no mass to a class of the teacher. alpha = 0 is `forward_kl`. The DistiLLM code reports the
  cross-entropy form instead: the same gradient, a value larger by the teacher's entropy.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    alpha: in [0, 1], the teacher's share of the mixture. May be traced.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, alpha or temperature is out of range, or the teacher is a
      sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{skewed_forward_kl(jnp.log(student), jnp.log(teacher)):.4f}")
    0.7883

  Reference:
    Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
    https://arxiv.org/abs/2402.03898
  """
  name = "skewed_forward_kl"
  _common.check_unit(name, "alpha", alpha)
  student, teacher, where = _common.align(
    name, student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  weight = 1.0 - jnp.asarray(alpha, jnp.float32)
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  return _common.masked(weight * _kl_to_mixture(log_p, log_q, weight), where)


def skewed_reverse_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  alpha: float | Float[Array, ""] = 0.1,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(student || (1 - alpha) teacher + alpha student), bounded by log(1 / alpha).

  Mixing some of the student into the teacher keeps the loss finite where the teacher gives no mass
  to a class of the student. alpha = 0 is `reverse_kl`.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    alpha: in [0, 1], the student's share of the mixture. May be traced.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, alpha or temperature is out of range, or the teacher is a
      sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{skewed_reverse_kl(jnp.log(student), jnp.log(teacher)):.4f}")
    0.7531

  Reference:
    Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
    https://arxiv.org/abs/2402.03898
  """
  name = "skewed_reverse_kl"
  _common.check_unit(name, "alpha", alpha)
  student, teacher, where = _common.align(
    name, student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  weight = 1.0 - jnp.asarray(alpha, jnp.float32)
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  return _common.masked(weight * _kl_to_mixture(log_q, log_p, weight), where)


def generalized_jsd(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  beta: float | Float[Array, ""] = 0.5,
  rescaled: bool = False,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Generalised Jensen-Shannon divergence, from forward KL (beta near 0) to reverse KL (near 1).

  beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, p the teacher and q the
  student. This formula, the paper's, shrinks to 0 towards both ends, and its gradient with it;
  exactly at 0 and 1 the value is `forward_kl` and `reverse_kl`, as in TRL and Liger, so the loss
  jumps there. With `rescaled` the formula is divided by beta (1 - beta): continuous on all of
  [0, 1] with the same two ends, and four times the plain value at 0.5. `js_distance(lam)` of
  DistiLLM is beta = 1 - lam.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    beta: the teacher's share of the mixture, in [0, 1]. May be traced.
    rescaled: divides by beta (1 - beta), without loss of accuracy near the ends. Static.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position; the plain form is symmetric under exchange of student and
    teacher together with beta and 1 - beta, and at most the entropy of (beta, 1 - beta).

  Raises:
    KdjaxError: if the shapes differ, beta or temperature is out of range, or the teacher is a
      sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> print(f"{generalized_jsd(jnp.log(student), jnp.log(teacher), beta=0.1):.4f}")
    0.0927

  Reference:
    Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes", ICLR 2024, https://arxiv.org/abs/2306.13649
  """
  name = "generalized_jsd"
  _common.check_unit(name, "beta", beta)
  student, teacher, where = _common.align(
    name, student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  beta = jnp.asarray(beta, jnp.float32)
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  value = _kl_to_mixture(log_p, log_q, 1.0 - beta) + _kl_to_mixture(log_q, log_p, beta)
  if not rescaled:
    scale = beta * (1.0 - beta)
    value = jnp.where(scale > 0, scale, 1.0) * value
  return _common.masked(value, where)


def _kl_to_mixture(
  log_a: Float[Array, "*batch vocab"],
  log_b: Float[Array, "*batch vocab"],
  weight: Float[Array, ""],
) -> Float[Array, "*batch"]:
  """KL(a || (1 - w) a + w b) / w: 0 in the limit w = 0, and KL(a || b) at w = 1.

  With u = b / a - 1 the divergence is -sum a log(1 + w u), and sum a u = 0 may be added to make
  every term non-negative: a (u - log(1 + w u) / w).
  """
  a, b = jnp.exp(log_a), jnp.exp(log_b)
  inside = a > _common.TINY
  d = jnp.where(inside, log_b, 0.0) - jnp.where(inside, log_a, 0.0)
  u = jnp.expm1(d)
  # 1 + w u loses digits where w u is near -1: there the logarithm is taken from logarithms.
  deep = weight * u < -0.5
  shallow_log = jnp.log1p(jnp.where(deep, 0.0, weight * u))
  deep_log = jnp.logaddexp(
    jnp.where(deep, jnp.log1p(-weight), 0.0), jnp.where(deep, jnp.log(weight) + d, 0.0)
  )
  positive = weight > 0
  ratio = jnp.where(deep, deep_log, shallow_log) / jnp.where(positive, weight, 1.0)
  inner = a * (u - jnp.where(positive, ratio, u))
  # Where a is 0, so is the logarithm's term; what is left of a u is b.
  outer = jnp.where(positive, b - a, 0.0)
  return jnp.sum(jnp.where(inside, inner, outer), axis=-1)
