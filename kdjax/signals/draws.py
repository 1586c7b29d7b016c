"""Draws from a teacher's distribution that depend on nothing but seed, example and position."""

from __future__ import annotations

import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

STEPS = 3


def draw_words(seed: int, key: bytes, length: int) -> UInt32[np.ndarray, "time 2"]:
  """Two words for each position of an example: what `draw` makes its random numbers of.

  Args:
    seed: of the cache.
    key: of the example.
    length: its positions.

  Returns:
    uint32 [length, 2]; no two positions of a data set share theirs, but by chance.
  """
  digest = hashlib.blake2b(struct.pack("<q", seed) + key, digest_size=8).digest()
  words = np.frombuffer(digest, "<u4")
  out = np.tile(words, (length, 1))
  out[:, 1] += np.arange(length, dtype=np.uint32)
  return out


def draw(
  words: UInt32[Array, "*batch 2"],
  logits: Float[Array, "*batch vocab"],
  *,
  num_samples: int,
  temperature: float = 1.0,
) -> Int[Array, "*batch n"]:
  """Draws classes with replacement, by inverting the distribution function in three steps.

  A block of classes is drawn by the sums of blocks, then a block inside it, then a class, each with
  a random number of its own: the float32 sums that are compared are short, so that rare classes
  come as often as they should, and few. Gumbel noise would take a random number per class and draw.

  Args:
    words: uint32 [..., 2], see `draw_words`.
    logits: [..., V], any float dtype.
    num_samples: N, static.
    temperature: > 0; divides the logits.

  Returns:
    int32 [..., N].
  """
  vocab = logits.shape[-1]
  size = 1
  while size**STEPS < vocab:
    size += 1

  def one(words, logits):
    probs = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    table = jnp.pad(probs, (0, size**STEPS - vocab)).reshape((size,) * STEPS)
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    chosen: tuple[jax.Array, ...] = ()
    for step, uniform in enumerate(jax.random.uniform(key, (STEPS, num_samples), jnp.float32)):
      sums = table.sum(axis=tuple(range(step + 1, STEPS)))
      rows = sums[chosen] if chosen else jnp.broadcast_to(sums, (num_samples, size))
      chosen = (*chosen, _invert(rows, uniform))
    return jnp.ravel_multi_index(chosen, (size,) * STEPS, mode="wrap").astype(jnp.int32)

  flat = jax.vmap(one)(words.reshape(-1, 2), logits.reshape(-1, vocab))
  return flat.reshape(logits.shape[:-1] + (num_samples,))


def _invert(weights: Float[Array, "n m"], uniform: Float[Array, "n"]) -> Int[Array, "n"]:
  """Of each row an index drawn in proportion to its weights; never one of weight 0."""
  sums = jnp.cumsum(weights, axis=-1)
  whole = sums[:, -1:]
  below = jnp.sum(sums <= uniform[:, None] * whole, axis=-1, dtype=jnp.int32)
  # Where rounding takes the product to the whole sum, the first class that reaches it is meant.
  return jnp.minimum(below, jnp.sum(sums < whole, axis=-1, dtype=jnp.int32))
