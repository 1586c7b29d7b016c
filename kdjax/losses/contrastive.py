"""Telling an example's own counterpart from those of others."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["noise_contrastive"]


def noise_contrastive(
  scores: Float[Array, "*batch candidate"],
  *,
  examples: int,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""-log h(s_0) - sum_k log(1 - h(s_k)) with h(s) = s / (s + K / examples).

  Noise-contrastive estimation: the first candidate is the counterpart, the other K were drawn
  uniformly from a set of so many examples. Scores are positive and estimate probabilities.

  Args:
    scores: [..., K + 1], positive, any float dtype.
    examples: at least 1, size of the set that the K were drawn from. Static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], in nats.

  Raises:
    KdjaxError: no candidate beside the counterpart, or examples < 1.

  Example:
    >>> print(noise_contrastive(jnp.array([0.5, 0.5]), examples=2).round(4))  # 2 log 2
    1.3863

  Reference:
    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020,
    https://arxiv.org/abs/1910.10699 (equation 18; HobbitLong/RepDistiller, crd/criterion.py)
  """
  name = "noise_contrastive"
  scores = jnp.asarray(scores)
  if scores.ndim == 0 or scores.shape[-1] < 2:
    raise KdjaxError(f"{name}: scores has shape {scores.shape}; at least 2 candidates are wanted")
  if examples < 1:
    raise KdjaxError(f"{name}: examples is {examples}; it must be at least 1")
  where = _common.check_where(name, where, scores.shape[:-1])
  scores = scores.astype(jnp.float32)
  if where is not None:
    scores = jnp.where(jnp.broadcast_to(where[..., None], scores.shape), scores, 1.0)
  noise = (scores.shape[-1] - 1) / examples
  positive, negatives = scores[..., 0], scores[..., 1:]
  value = -_log_share(positive, noise) - jnp.sum(_log_noise(negatives, noise), axis=-1)
  return _common.masked(value, where)


def _log_share(score: Array, noise: float) -> Array:
  return jnp.log(score) - jnp.log(score + (noise + 1e-7))


def _log_noise(score: Array, noise: float) -> Array:
  return jnp.log(jnp.float32(noise)) - jnp.log(score + (noise + 1e-7))
