"""Policies of bounded actions: Beta distributions, compared with others and with actions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["beta_kl", "beta_nll"]


def beta_kl(
  student_policy: Float[Array, "*batch 2"],
  teacher_policy: Float[Array, "*batch 2"],
  *,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(teacher || student) of two Beta distributions, in nats.

  With the teacher's a, b and the student's c, d it is :math:`\ln B(c, d) - \ln B(a, b)
  + (a - c) \psi(a) + (b - d) \psi(b) + (c - a + d - b) \psi(a + b)`.

  Args:
    student_policy: [..., 2], (alpha, beta) > 0, any float dtype.
    teacher_policy: [..., 2], the same; no gradient flows here.
    where: bool, broadcastable to [...]; False elements return 0.

  Returns:
    float32 [...], at least 0.

  Raises:
    KdjaxError: if the shapes differ or the last axis is not 2.

  Example:
    >>> print(beta_kl(jnp.array([2.0, 2.0]), jnp.array([2.0, 2.0])))
    0.0

  Reference:
    torch.distributions.kl_divergence of two Beta, as OpenDriveLab/DriveAdapter uses it.
  """
  if student_policy.shape != teacher_policy.shape or student_policy.shape[-1] != 2:
    raise KdjaxError(
      f"beta_kl: policies of shapes {student_policy.shape} and {teacher_policy.shape}; both must be"
      " [..., 2], alpha and beta"
    )
  c, d = jnp.moveaxis(student_policy.astype(jnp.float32), -1, 0)
  a, b = jnp.moveaxis(jax.lax.stop_gradient(teacher_policy).astype(jnp.float32), -1, 0)
  if where is not None:  # what is masked may be no distribution at all
    a, b, c, d = (jnp.where(where, x, 1.0) for x in (a, b, c, d))
  kl = betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b)
  return _common.masked(kl + (c - a + d - b) * digamma(a + b), where)


def beta_nll(
  student_policy: Float[Array, "*batch 2"],
  action: Float[Array, "*batch"],
  *,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  """-log of the density that a Beta distribution has at an action.

  Args:
    student_policy: [..., 2], (alpha, beta) > 0, any float dtype.
    action: [...] in [-1, 1]; taken to the unit interval and kept 1% off its ends, where densities
      have no bound.
    where: bool, broadcastable to [...]; False elements return 0.

  Returns:
    float32 [...], of the unit interval; it may be negative.

  Raises:
    KdjaxError: if the policy is not [..., 2] for actions [...].

  Example:
    >>> print(beta_nll(jnp.array([2.0, 2.0]), jnp.array(0.0)).round(4))
    -0.4055
  """
  if student_policy.shape != (*action.shape, 2):
    raise KdjaxError(
      f"beta_nll: a policy of shape {student_policy.shape} and actions {action.shape}; [..., 2] and"
      " [...] are wanted"
    )
  a, b = jnp.moveaxis(student_policy.astype(jnp.float32), -1, 0)
  x = jnp.clip((action.astype(jnp.float32) + 1) / 2, 0.01, 0.99)
  nll = betaln(a, b) - (a - 1) * jnp.log(x) - (b - 1) * jnp.log1p(-x)
  return _common.masked(nll, where)
