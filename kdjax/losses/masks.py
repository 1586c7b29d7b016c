"""Masks of an image against those that are true."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["dice", "mask_cross_entropy"]


def dice(
  mask_logits: Float[Array, "batch height width channel"],
  masks: Float[Array, "batch height width channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""The mean over masks of :math:`1 - (2 \sum p y + 1) / (\sum p + \sum y + 1)`.

  Args:
    mask_logits: [B, H, W, C], of which p are the sigmoids, any float dtype.
    masks: [B, H, W, C], y, 0 or 1.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B] in [0, 1).

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> print(dice(jnp.full((1, 2, 2, 1), 50.0), jnp.ones((1, 2, 2, 1))))
    [0.]

  Reference:
    Milletari et al., "V-Net", 3DV 2016, https://arxiv.org/abs/1606.04797
  """
  logits, masks = _aligned("dice", mask_logits, masks)
  probs = jax.nn.sigmoid(logits)
  both, either = (probs * masks).sum((1, 2)), probs.sum((1, 2)) + masks.sum((1, 2))
  return _common.masked((1 - (2 * both + 1) / (either + 1)).mean(-1), where)


def mask_cross_entropy(
  mask_logits: Float[Array, "batch height width channel"],
  masks: Float[Array, "batch height width channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  """The mean over places and masks of the binary cross-entropy, in nats.

  Args:
    mask_logits: [B, H, W, C], any float dtype.
    masks: [B, H, W, C], 0 or 1.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], at least 0.

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> print(mask_cross_entropy(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))))
    [0.6931472]
  """
  logits, masks = _aligned("mask_cross_entropy", mask_logits, masks)
  values = optax.losses.sigmoid_binary_cross_entropy(logits, masks)
  return _common.masked(values.mean((1, 2, 3)), where)


def _aligned(name: str, logits: Array, masks: Array) -> tuple[Array, Array]:
  if logits.shape != masks.shape or logits.ndim != 4:
    raise KdjaxError(
      f"{name}: masks of shapes {logits.shape} and {masks.shape}; both must be [B, H, W, C]"
    )
  return logits.astype(jnp.float32), masks.astype(jnp.float32)
