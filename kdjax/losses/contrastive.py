"""Telling an example's own counterpart from those of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["noise_contrastive", "paired_cross_entropy"]


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


def paired_cross_entropy(
  scores: Float[Array, "batch batch"],
  *,
  distractors: Bool[Array, "batch batch"] | None = None,
  both: bool = True,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""Cross-entropy of finding each example's counterpart in the batch (InfoNCE).

  :math:`-\log \mathrm{softmax}_j(s_{ij})_i`, and with `both` the mean of that and the same over
  columns, as CLIP trains its towers. Under accumulation a batch is a micro-batch.

  Args:
    scores: [B, B], of example i with counterpart j, already divided by a temperature.
    distractors: [B, B], which counterparts tell i from others; its own always counts. None: all.
      Without those of equal meaning, such as the same class's, an example is not pushed from them.
    both: also over columns.
    where: [B]; False positions return 0 and are nobody's distractor.

  Returns:
    float32[B], in nats.

  Raises:
    KdjaxError: scores that are not square, or masks of another shape.

  Example:
    >>> print(paired_cross_entropy(jnp.zeros((4, 4))).round(4))  # log 4
    [1.3863 1.3863 1.3863 1.3863]

  Reference:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
    2021, https://arxiv.org/abs/2103.00020 (figure 3)
  """
  name = "paired_cross_entropy"
  scores = jnp.asarray(scores)
  if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
    raise KdjaxError(f"{name}: scores has shape {scores.shape}; [B, B] is wanted")
  where = _common.check_where(name, where, scores.shape[:1])
  own = jnp.eye(scores.shape[0], dtype=bool)
  seen = jnp.ones_like(own)
  if distractors is not None:
    seen = own | _common.check_where(name, distractors, scores.shape, "distractors")
  counted = own
  if where is not None:
    seen &= where[None, :] & where[:, None] | own
    counted = own & where[None, :]
  # A position that does not count may hold anything, also nan, in its row and column.
  scores = jnp.where(seen & (counted | ~own), scores.astype(jnp.float32), 0.0)
  masked = jnp.where(seen, scores, -jnp.inf)
  right = jnp.diagonal(masked)
  value = jax.nn.logsumexp(masked, axis=1) - right
  if both:
    value = 0.5 * (value + jax.nn.logsumexp(masked, axis=0) - right)
  return _common.masked(value, where)


def _log_share(score: Array, noise: float) -> Array:
  return jnp.log(score) - jnp.log(score + (noise + 1e-7))


def _log_noise(score: Array, noise: float) -> Array:
  return jnp.log(jnp.float32(noise)) - jnp.log(score + (noise + 1e-7))
