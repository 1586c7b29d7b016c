"""Top-k teachers made as sure as they are right, before a student learns from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common
from kdjax.losses.signals import TopK

__all__ = ["recalibrate_top_k", "smooth_top_k"]


def recalibrate_top_k(
  signal: TopK, *, temperature: float | Float[Array, ""], legacy: bool = False
) -> TopK:
  """Sharpens (temperature < 1) or flattens (> 1) a top-k signal within its K classes.

  FIRST's "trustworthy maximisation": one temperature, chosen on held-out text (see
  `kdjax.evaluation.top_k_temperature`), makes overconfident teachers safe to learn from. The K
  classes keep their order and, together, their mass, so that every `tail` of `sparse_forward_kl`
  may follow; FIRST uses "renormalise" or "bucket".

  Args:
    signal: [..., K].
    temperature: > 0; 1 changes nothing, infinity makes all K equal. May be traced. The student's
      logits are not divided by it: `signal.temperature` stays.
    legacy: the softmax is of the probabilities divided by the temperature, not of their logarithms,
      as in the published code: nearly uniform already at 1. Static.

  Returns:
    A `TopK` of the same classes, with float32 log-probabilities.

  Raises:
    KdjaxError: if the signal is not a TopK or temperature <= 0.

  Example:
    >>> signal = top_k_signal(jnp.log(jnp.array([0.64, 0.16, 0.2])), k=2)
    >>> print(jnp.exp(recalibrate_top_k(signal, temperature=2.0).log_probs).round(4))  # 0.84 in all
    [0.5388 0.3012]

  Reference:
    Shum et al., "FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy
    Distillation", EMNLP 2024, https://arxiv.org/abs/2408.12168 (SHUMKASHUN/FIRST, distill.py).
  """
  log_probs = _log_probs("recalibrate_top_k", signal)
  _common.check_temperature("recalibrate_top_k", temperature)
  used = log_probs > -jnp.inf
  scores = jnp.where(used, jnp.exp(log_probs), -jnp.inf) if legacy else log_probs
  return _within(signal, log_probs, _common.divide(scores, temperature))


def smooth_top_k(signal: TopK, *, amount: float = 0.1) -> TopK:
  """Takes `amount` of mass from the likeliest class and spreads it evenly over the other K - 1.

  FIRST's alternative to `recalibrate_top_k`, which did better in the paper. A likeliest class with
  less mass gives all that it has.

  Args:
    signal: [..., K] with K > 1; slots that are not used (-inf) get nothing.
    amount: in [0, 1], of the mass over the whole vocabulary.

  Returns:
    A `TopK` of the same classes and mass, with float32 log-probabilities.

  Raises:
    KdjaxError: if the signal is not a TopK of two or more classes or `amount` is out of range.

  Example:
    >>> signal = top_k_signal(jnp.log(jnp.array([0.7, 0.2, 0.1])), k=3)
    >>> [f"{p:.2f}" for p in jnp.exp(smooth_top_k(signal, amount=0.1).log_probs)]
    ['0.60', '0.25', '0.15']

  Reference:
    Shum et al., "FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy
    Distillation", EMNLP 2024, https://arxiv.org/abs/2408.12168 (SHUMKASHUN/FIRST, distill.py).
  """
  log_probs = _log_probs("smooth_top_k", signal)
  _common.check_unit("smooth_top_k", "amount", amount)
  size = log_probs.shape[-1]
  if size < 2:
    raise KdjaxError("smooth_top_k: the signal holds one class; two or more are wanted")
  probs, used = jnp.exp(log_probs), log_probs > -jnp.inf
  first = jax.nn.one_hot(jnp.argmax(probs, axis=-1), size, dtype=jnp.bool_)
  others = used & ~first
  count = jnp.sum(others, axis=-1, keepdims=True, dtype=jnp.float32)
  given = jnp.minimum(jnp.float32(amount), jnp.max(probs, axis=-1, keepdims=True))
  given = jnp.where(count > 0, given, 0.0)
  share = given / jnp.maximum(count, 1.0)
  probs = probs + jnp.where(first, -given, jnp.where(others, share, 0.0))
  return TopK(signal.ids, jnp.log(probs), vocab=signal.vocab, temperature=signal.temperature)


def _log_probs(who: str, signal: TopK) -> Array:
  if not isinstance(signal, TopK):
    raise KdjaxError(f"{who}: the signal is a {type(signal).__name__}; TopK is wanted")
  return signal.log_probs.astype(jnp.float32)


def _within(signal: TopK, log_probs: Array, scores: Array) -> TopK:
  """The signal with its mass shared out by the softmax of `scores`."""
  # A row without any class that is used has nothing to share.
  empty = jnp.max(scores, axis=-1, keepdims=True) == -jnp.inf
  mass = jax.nn.logsumexp(jnp.where(empty, 0.0, log_probs), axis=-1, keepdims=True)
  shared = jax.nn.log_softmax(jnp.where(empty, 0.0, scores)) + mass
  shared = jnp.where(empty, -jnp.inf, shared)
  return TopK(signal.ids, shared, vocab=signal.vocab, temperature=signal.temperature)
