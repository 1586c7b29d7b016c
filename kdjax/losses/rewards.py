"""Losses on tokens that a policy drew: importance weights, clipping, returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["clipped_policy_gradient", "policy_gradient", "remaining_return", "whiten"]


def policy_gradient(
  log_probs: Float[Array, "*batch"],
  old_log_probs: Float[Array, "*batch"],
  advantages: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
  """-A exp(log q - log q_old) of each token, q_old being what it was drawn from.

  Where q is q_old its gradient is -A grad log q.

  Args:
    log_probs: of the drawn tokens under the student, in nats.
    old_log_probs: under what they were drawn from; no gradient flows here.
    advantages: no gradient flows here.

  Returns:
    float32, a value per token.

  Raises:
    Nothing of its own.

  Example:
    >>> policy_gradient(jnp.array(0.0), jnp.array(0.0), jnp.array(2.0))
    Array(-2., dtype=float32)
  """
  old, advantages = jax.lax.stop_gradient((old_log_probs, advantages))
  ratio = jnp.exp(log_probs.astype(jnp.float32) - old.astype(jnp.float32))
  return -advantages.astype(jnp.float32) * ratio


def clipped_policy_gradient(
  log_probs: Float[Array, "*batch"],
  old_log_probs: Float[Array, "*batch"],
  advantages: Float[Array, "*batch"],
  weights: Float[Array, "*batch"] | float = 1.0,
  *,
  clip: float = 0.2,
) -> Float[Array, "*batch"]:
  """max(-A r, -A clip(r, 1 - c, 1 + c)) of each token, r = w exp(log q - log q_old).

  Args:
    log_probs: of the drawn tokens under the student, in nats.
    old_log_probs: under the student that was asked first; no gradient flows here.
    advantages: no gradient flows here.
    weights: w, of q_old over what the tokens were drawn from; no gradient flows here.
    clip: c, in (0, 1).

  Returns:
    float32, a value per token.

  Raises:
    Nothing of its own.

  Example:
    >>> clipped_policy_gradient(jnp.array(1.0), jnp.array(0.0), jnp.array(2.0), clip=0.5)
    Array(-3., dtype=float32)

  Reference:
    Schulman et al., "Proximal Policy Optimization Algorithms", 2017,
    https://arxiv.org/abs/1707.06347, equation 7; MiniLLM multiplies the ratio with w
    (`_pg_loss` of minillm/losses.py).
  """
  old, advantages, weights = jax.lax.stop_gradient((old_log_probs, advantages, weights))
  ratio = weights * jnp.exp(log_probs.astype(jnp.float32) - old.astype(jnp.float32))
  bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
  return jnp.maximum(-advantages * ratio, -advantages * bounded)


def remaining_return(
  rewards: Float[Array, "*batch time"],
  where: Bool[Array, "*batch time"],
  *,
  discount: float,
  normalize: bool = True,
) -> Float[Array, "*batch time"]:
  """The discounted sum of the rewards from each token on, over the number of tokens left.

  Args:
    rewards: of each token.
    where: which tokens count; other rewards are taken for 0, and get 0.
    discount: gamma, in [0, 1].
    normalize: divides by how many tokens that count are left, this one among them.

  Returns:
    float32 [..., T].

  Raises:
    Nothing of its own.

  Example:
    >>> remaining_return(jnp.array([1.0, 2.0, 4.0]), jnp.ones(3, bool), discount=0.5)
    Array([1., 2., 4.], dtype=float32)

  Reference:
    Gu et al., "MiniLLM", ICLR 2024, equation 5 and "length normalization";
    `_get_advantages_and_returns` of minillm/losses.py.
  """
  where = jnp.asarray(where)
  rewards = jnp.where(where, rewards.astype(jnp.float32), 0.0)

  def later(a, b):
    # Both are (factor, sum): the sum from a on is a's own with what follows, discounted.
    return a[0] * b[0], b[1] + b[0] * a[1]

  factors = jnp.full(rewards.shape, discount, jnp.float32)
  _, total = jax.lax.associative_scan(
    later, (factors, rewards), reverse=True, axis=rewards.ndim - 1
  )
  if normalize:
    left = jnp.cumsum(where[..., ::-1].astype(jnp.float32), axis=-1)[..., ::-1]
    total = total / jnp.maximum(left, 1.0)
  return jnp.where(where, total, 0.0)


def whiten(values: Float[Array, "*batch"], where: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
  """Values less their mean, over their deviation, both of those that count; 0 elsewhere.

  The variance is divided by the count and 1e-8 added, as MiniLLM does over several processes; its
  code lets the zeros of the padding count, too.

  Args:
    values: any.
    where: which count.

  Returns:
    float32, of the shape of the values.

  Raises:
    Nothing of its own.

  Example:
    >>> whiten(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
  """
  values = values.astype(jnp.float32)
  count = jnp.maximum(where.sum(dtype=jnp.float32), 1.0)
  mean = jnp.where(where, values, 0.0).sum() / count
  centred = jnp.where(where, values - mean, 0.0)
  return centred * jax.lax.rsqrt((centred**2).sum() / count + 1e-8)
