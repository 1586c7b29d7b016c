"""How alike the attention maps of a model's layers are."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError


def attention_similarity(
  attention: Float[Array, "layer batch head query key"],
  where: Bool[Array, "batch query"],
  *,
  without_first: bool = False,
) -> tuple[Float[Array, "layer other"], Float[Array, ""]]:
  """Cosine of the maps of every two layers, row by row, summed over queries and heads.

  It says which layers may share a map. Sums and counts of several batches add up; their quotient is
  the mean, 1 on the diagonal.

  Args:
    attention: probabilities, [L, B, H, T, S], as the tap `attention` gives them.
    where: [B, T], which queries count: tokens that are not padding.
    without_first: leaves out the first key. Much of the attention rests on it whatever the text,
      which makes all maps alike; the first query, which sees nothing else, then counts as 0.

  Returns:
    (float32 [L, L], how many queries and heads), to be divided.

  Raises:
    KdjaxError: shapes that do not fit.

  Example:
    >>> maps = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.5]])[:, None, None, None]
    >>> total, count = attention_similarity(maps, jnp.ones((1, 1), bool))
    >>> print((total / count)[0])
    [1. 0. 1.]

  Reference:
    Rajabzadeh et al., "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language
    Models", 2024, https://arxiv.org/abs/2409.14595.
  """
  if attention.ndim != 5 or where.shape != (attention.shape[1], attention.shape[3]):
    raise KdjaxError(
      f"attention_similarity: attention has shape {attention.shape} and where {where.shape}; wanted"
      " [layer, batch, head, query, key] and [batch, query]"
    )
  rows = attention.astype(jnp.float32)[..., 1 if without_first else 0 :]
  norm = jnp.sqrt(jnp.square(rows).sum(-1, keepdims=True))
  counted = where[None, :, None, :, None]
  rows = jnp.where(counted & (norm > 0), rows / jnp.where(norm > 0, norm, 1.0), 0.0)
  count = where.sum(dtype=jnp.float32) * attention.shape[2]
  return jnp.einsum("abhqk,cbhqk->ac", rows, rows), count
