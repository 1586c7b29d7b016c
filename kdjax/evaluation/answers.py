"""Whether a written text ends in the right answer, read in tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def answer_match(
  tokens: Int[Array, "batch time"],
  lengths: Int[Array, "batch"],
  reference: Int[Array, "batch other"],
  reference_lengths: Int[Array, "batch"],
  marker: int,
) -> Bool[Array, "batch"]:
  """Whether two texts have the same answer: all tokens behind the last marker, and their end.

  What stands before the marker may differ. A text without a marker matches none.

  Args:
    tokens: [B, T], what was written, with the token that ended it.
    lengths: [B], how many of these count.
    reference: [B, R], the right text, likewise.
    reference_lengths: [B].
    marker: the token.

  Returns:
    bool [B].
  """
  size = max(tokens.shape[1], reference.shape[1])
  own, found = _behind(tokens, lengths, marker, size)
  wanted, there = _behind(reference, reference_lengths, marker, size)
  return found & there & (own == wanted).all(-1)


def _behind(tokens, lengths, marker: int, size: int):
  """([B, size] tokens behind the last marker and -1 behind those, [B] whether there is one)."""
  places = jnp.arange(tokens.shape[1])[None]
  at = jnp.where((tokens == marker) & (places < lengths[:, None]), places, -1).max(-1)
  read = at[:, None] + 1 + jnp.arange(size)[None]
  behind = jnp.take_along_axis(tokens, jnp.minimum(read, tokens.shape[1] - 1), 1)
  return jnp.where(read < lengths[:, None], behind, -1), at >= 0
