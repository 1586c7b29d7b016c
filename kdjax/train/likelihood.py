"""Log-probabilities that a language model gives to continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.errors import KdjaxError
from kdjax.models.base import Model, ModelVars

ROWS = 8
SHORTEST = 32


def continuation_log_probs(
  model: Model, variables: ModelVars, tokenizer: Any, pairs: Sequence[tuple[str, str]]
) -> list[float]:
  """The summed log-probability, in nats, of each continuation's tokens after its prompt.

  Prompt and continuation are tokenised together, so that a token that spans their border is one of
  the continuation's. Rows are padded to 32, 64, 128, ... tokens, a compiled program for each.

  Args:
    model: a causal language model.
    variables: of the model.
    tokenizer: of transformers, with offsets.
    pairs: (prompt, continuation).

  Returns:
    One number for each pair.

  Raises:
    KdjaxError: an empty continuation or prompt, or a pair longer than the model's positions.
  """
  rows = [_tokens(tokenizer, *pair) for pair in pairs]

  @jax.jit
  def score(variables: ModelVars, tokens, chosen):
    batch = {"tokens": tokens[:, :-1]}
    outputs, _ = model.apply(variables, batch, taps=frozenset({"hidden", "head"}))

    def one(row):  # logits of one row at a time
      hidden, label, chosen = row
      log_probs = jax.nn.log_softmax(outputs.head.logits(hidden))
      own = jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]
      return jnp.where(chosen, own, 0.0).sum()

    return jax.lax.map(one, (outputs.hidden, tokens[:, 1:], chosen))

  scores = np.zeros(len(rows))
  lengths = [_bucket(len(ids)) for ids, _ in rows]
  for length in sorted(set(lengths)):
    places = [i for i, own in enumerate(lengths) if own == length]
    for first in range(0, len(places), ROWS):
      some = places[first : first + ROWS]
      tokens = np.zeros((ROWS, length + 1), np.int32)
      chosen = np.zeros((ROWS, length), bool)
      for row, i in enumerate(some):
        ids, begin = rows[i]
        tokens[row, : len(ids)] = ids
        chosen[row, begin - 1 : len(ids) - 1] = True
      scores[some] = np.asarray(score(variables, tokens, chosen))[: len(some)]
  return scores.tolist()


def _tokens(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], int]:
  """(ids of both, index of the first that is of the continuation)."""
  coded = tokenizer(prompt + continuation, return_offsets_mapping=True, add_special_tokens=False)
  ends = [stop for _, stop in coded["offset_mapping"]]
  begin = next((i for i, stop in enumerate(ends) if stop > len(prompt)), len(ends))
  if begin == len(ends):
    raise KdjaxError(f"the continuation of {prompt[-40:]!r} is empty; give text to score")
  if begin == 0:
    raise KdjaxError("a prompt is empty; a first token has no probability")
  return coded["input_ids"], begin


def _bucket(length: int) -> int:
  size = SHORTEST
  while size < length:
    size *= 2
  return size
