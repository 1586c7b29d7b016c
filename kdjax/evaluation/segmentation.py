"""How well label maps agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError


def intersection_over_union(
  logits: Float[Array, "*batch classes"],
  labels: Int[Array, "*batch"],
  where: Bool[Array, "*batch"] | None = None,
) -> dict[str, tuple[Array, Array]]:
  """Places of each class in both maps, over those in either.

  Args:
    logits: [..., V], of places.
    labels: [...], 0 .. V-1; negative where unknown, which does not count.
    where: [...], True = counted; None counts all.

  Returns:
    `iou`, a pair of vectors [V] (places in both, places in either), summed over everything before
    they are divided; `finalize` adds `mean_iou` over the classes that occur in either.

  Raises:
    KdjaxError: shapes that do not fit.

  Example:
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> both, either = intersection_over_union(logits, jnp.array([0, 1, 1]))["iou"]
    >>> print(both / either)
    [0.5 0.5]
  """
  if labels.shape != logits.shape[:-1]:
    raise KdjaxError(
      f"intersection_over_union: labels have shape {labels.shape}, logits {logits.shape}; one label"
      " for each place is wanted"
    )
  where = jnp.ones(labels.shape, bool) if where is None else where
  counted = (where & (labels >= 0))[..., None]
  found, wanted = (
    (jax.nn.one_hot(each, logits.shape[-1]) > 0) & counted
    for each in (logits.astype(jnp.float32).argmax(-1), labels)
  )
  rows = tuple(range(labels.ndim))
  return {
    "iou": (
      (found & wanted).sum(rows, dtype=jnp.float32),
      (found | wanted).sum(rows, dtype=jnp.float32),
    )
  }
