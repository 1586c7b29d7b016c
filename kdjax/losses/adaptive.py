"""Forward and reverse KL, weighted by where on the teacher's ranking the two models differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["adaptive_kl"]


def adaptive_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  head_mass: float | Float[Array, ""] = 0.5,
  crossing: str = "head",
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Forward KL weighted by the gap on the teacher's head, reverse KL by the gap on its tail.

  The head is the shortest prefix of classes, likeliest first, that holds `head_mass`. With g the
  summed \|p - q\| over head and tail, the loss is
  (g_head KL(p || q) + g_tail KL(q || p)) / (g_head + g_tail); no gradient passes the weights.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    head_mass: in [0, 1], the teacher's probability in the head. May be traced.
    crossing: where the class that crosses `head_mass` goes. "head" is the paper's rule; "tail" is
      the official code's, where only the likeliest class is in the head whatever it holds. Static.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, an option is out of range, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.4, 0.35, 0.15, 0.1]), jnp.array([0.1, 0.2, 0.3, 0.4])
    >>> print(f"{adaptive_kl(jnp.log(student), jnp.log(teacher)):.4f}")
    0.5098

  Reference:
    Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language
    Models", COLING 2025, https://arxiv.org/abs/2404.02657
  """
  _common.check_unit("adaptive_kl", "head_mass", head_mass)
  if crossing not in ("head", "tail"):
    raise KdjaxError(f"adaptive_kl: crossing is {crossing!r}; it must be 'head' or 'tail'")
  student, teacher, where = _common.align(
    "adaptive_kl", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  head, tail = _gaps(log_p, jax.lax.stop_gradient(log_q), head_mass, crossing)
  total = head + tail
  differs = total > 0
  total = jnp.where(differs, total, 1.0)
  # Without any gap both divergences are 0; the weights only have to be finite.
  value = (head / total) * _common.kl(log_p, log_q) + (tail / total) * _common.kl(log_q, log_p)
  return _common.masked(value, where)


def _gaps(log_p: Array, log_q: Array, head_mass, crossing: str) -> tuple[Array, Array]:
  """Sum of |p - q| over the teacher's head and over its tail."""
  negative_p, q = jax.lax.sort((-jnp.exp(log_p), jnp.exp(log_q)), dimension=-1, num_keys=1)
  p = -negative_p
  mass = jnp.cumsum(p, axis=-1)
  head_mass = jnp.asarray(head_mass, jnp.float32)
  if crossing == "head":
    in_head = mass - p < head_mass
  else:
    first = jnp.arange(p.shape[-1]) == 0
    in_head = (mass <= head_mass) | jnp.broadcast_to(first, mass.shape)
  gap = jnp.abs(p - q)
  return jnp.sum(jnp.where(in_head, gap, 0.0), -1), jnp.sum(jnp.where(in_head, 0.0, gap), -1)
