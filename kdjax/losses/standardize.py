"""Z-scores of logits, a preprocessor for any logits loss."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import _common

__all__ = ["standardize_logits"]


def standardize_logits(
  logits: Float[Array, "*batch vocab"], *, axis: int = -1, eps: float = 1e-7
) -> Float[Array, "*batch vocab"]:
  r"""(logits - mean) / (std + eps) over the classes, with the unbiased std.

  Applied to both models before a loss with a temperature, it frees the student from matching the
  teacher's range: only the shape of the logits counts. The loss no longer changes when logits of
  either side are shifted or multiplied by a positive number. Classes at -inf stay there and do not
  enter mean and std. Unlike a loss, this lets gradients through: the loss that follows stops them
  on the teacher's side.

  Args:
    logits: [..., V], unnormalised, any float dtype.
    axis: the class axis, static.
    eps: added to the std, so that a constant row becomes 0.

  Returns:
    float32, the shape of `logits`.

  Raises:
    KdjaxError: if `axis` is not one of the axes.

  Example:
    >>> print(standardize_logits(jnp.array([0.0, 2.0, 4.0])).round(4))
    [-1.  0.  1.]

  Reference:
    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
    https://arxiv.org/abs/2403.01427
  """
  z = _common.classes_last("standardize_logits", jnp.asarray(logits), axis).astype(jnp.float32)
  kept = z != -jnp.inf
  safe = jnp.where(kept, z, 0.0)
  count = jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True).astype(jnp.float32), 1.0)
  mean = jnp.sum(safe, axis=-1, keepdims=True) / count
  centred = jnp.where(kept, safe - mean, 0.0)
  variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / jnp.maximum(count - 1.0, 1.0)
  # The root has no derivative at 0.
  varies = variance > 0
  std = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
  return jnp.moveaxis(jnp.where(kept, centred / (std + eps), -jnp.inf), -1, axis)
