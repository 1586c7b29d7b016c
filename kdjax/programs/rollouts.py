"""Rows of text that a model wrote, in the form of the rows that are read from data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kdjax.generation import Generation, Sampling
from kdjax.generation.generate import continued
from kdjax.models.base import Batch, Decoding
from kdjax.objectives.base import valid
from kdjax.outputs import Outputs
from kdjax.programs.correction import corrected, faults, joined

Tell = Callable[[dict[str, Array]], tuple[Outputs, Outputs]]


class Prompts(NamedTuple):
  """Beginnings of rows. B rows of at most P tokens.

  Attributes:
    tokens: [B, P].
    lengths: [B], 1 to P.
    where: [B], False where the row has no such beginning and is to be left out.
  """

  tokens: Int[Array, "batch prompt"]
  lengths: Int[Array, "batch"]
  where: Bool[Array, "batch"]


def beginnings(batch: Batch, length: int) -> Prompts:
  """The prompts of a batch of rows [B, T].

  The first example of a row gives the prompt. Where its first tokens are not to be learnt (the
  question of a chat) these are the prompt, whole, and a row whose question is longer than `length`
  is left out; else it is the example's first `length` tokens, or fewer where it is shorter.
  """
  tokens, label = batch["tokens"], batch["label"]
  learnt = valid(batch, label) & (label >= 0)
  segments = batch.get("segment_ids")
  same = jnp.ones(tokens.shape, bool) if segments is None else segments == segments[:, :1]
  # Of a row's first example: its tokens stand together from the row's beginning.
  own = jnp.cumprod(same, axis=1).sum(1)
  first = jnp.argmax(learnt, axis=1)
  question = jnp.where(first > 0, first + 1, jnp.minimum(own, length))
  where = learnt.any(1) & (question <= length) & (first < own)
  if segments is not None:
    where &= segments[:, 0] > 0
  return Prompts(tokens[:, :length], jnp.clip(question, 1, length).astype(jnp.int32), where)


def written_rows(prompts: Prompts, generation: Generation, length: int) -> dict[str, Array]:
  """Prompts with what was written after them, as rows [B, T] of one example each.

  Args:
    prompts: of at most P tokens.
    generation: at most N new tokens for each.
    length: T, at least P + N.

  Returns:
    `tokens`, `label` (-1 but for new tokens), `mask`, `segment_ids`, `positions` as rows of text
    have them, and `sample_log_probs` float32 [B, T]: of each label, under what it was drawn from.
  """
  place = jnp.arange(length, dtype=jnp.int32)[None]
  begin = prompts.lengths[:, None]
  end = begin + generation.lengths[:, None]
  padded = jnp.pad(prompts.tokens, ((0, 0), (0, length - prompts.tokens.shape[1])))
  # The n-th new token stands n places after the prompt; the rest is cut to where it does not count.
  last = generation.tokens.shape[1] - 1
  new = jnp.take_along_axis(generation.tokens, jnp.clip(place - begin, 0, last), axis=1)
  tokens = jnp.where(place < begin, padded, new)
  tokens = jnp.where(place < end, tokens, 0)
  learnt = (place >= begin - 1) & (place < end - 1) & prompts.where[:, None]
  spoken = jnp.take_along_axis(
    generation.sample_log_probs, jnp.clip(place + 1 - begin, 0, last), axis=1
  )
  return {
    "tokens": tokens,
    "label": jnp.where(learnt, jnp.roll(tokens, -1, axis=1), -1),
    "mask": learnt,
    "segment_ids": (place < end).astype(jnp.int32),
    "positions": jnp.broadcast_to(place, tokens.shape),
    "sample_log_probs": jnp.where(learnt, spoken, 0.0),
  }


def write(
  decoding: Decoding,
  prompts: Prompts,
  length: int,
  *,
  rng: Array,
  sampling: Sampling,
  eos_ids: Sequence[int],
  corrections: int = 0,
  tell: Tell | None = None,
) -> dict[str, Array]:
  """`written_rows` of prompts continued to at most `length` tokens in all; no gradient.

  Args:
    decoding: who writes.
    prompts: of at most P tokens.
    length: T.
    rng: a key.
    sampling: how tokens are drawn.
    eos_ids: what ends a text.
    corrections: how often the worst token of each text is replaced by the teacher's choice and what
      follows is written anew; see `kdjax.programs.correction`.
    tell: `tell(rows) -> (student, teacher)`, their outputs `hidden` and `head`; read where there
      are corrections.
  """
  options = {
    "max_new_tokens": length - prompts.tokens.shape[1],
    "sampling": sampling,
    "eos_ids": eos_ids,
  }
  generation = continued(decoding, prompts.tokens, prompts.lengths, rng=rng, **options)

  def revise(generation: Generation, key: Array) -> tuple[Generation, None]:
    rows = written_rows(prompts, generation, length)
    fault = faults(*tell(rows), rows)
    given = corrected(generation, fault, prompts.lengths)
    new = continued(decoding, prompts.tokens, prompts.lengths, rng=key, given=given, **options)
    return joined(generation, new, given[1], fault.found), None

  if corrections:
    # The numbers below that of the rows are those of the rows' own draws.
    keys = jax.random.split(jax.random.fold_in(rng, len(prompts.tokens)), corrections)
    generation, _ = jax.lax.scan(revise, generation, keys)
  return jax.lax.stop_gradient(written_rows(prompts, generation, length))
