"""Text in, text out: a tokenizer around the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kdjax.errors import KdjaxError
from kdjax.generation.generate import Generation
from kdjax.generation.generator import Generator
from kdjax.generation.sampling import Sampling
from kdjax.models.base import Model, ModelVars


def generate_text(
  model: Model | Generator,
  variables: ModelVars,
  tokenizer: Any,
  prompts: Sequence[str],
  *,
  max_new_tokens: int = 64,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  seed: int = 0,
  chat: bool = False,
  stops: Sequence[str] = (),
  eos_ids: Sequence[int] | None = None,
) -> list[str]:
  """Continues texts.

  Args:
    model: or a `Generator` of it, which keeps its compiled programs from call to call.
    variables: of the model.
    tokenizer: a tokenizer of transformers.
    prompts: texts, each at least one token long.
    max_new_tokens: at most so many for each prompt.
    temperature, top_k, top_p, min_p: see `Sampling`; the default is greedy.
    seed: of all draws.
    chat: each prompt is a user's message, put into the tokenizer's chat template.
    stops: texts at the first of which a continuation ends; they are not part of it.
    eos_ids: tokens that end a text; the tokenizer's own where None.

  Returns:
    The continuations, without the prompts and without special tokens.

  Raises:
    KdjaxError: see `generate`; chat without a chat template.
  """
  generator = model if isinstance(model, Generator) else Generator(model)
  ends = end_ids(tokenizer) if eos_ids is None else tuple(eos_ids)
  generation = generator(
    variables,
    encode(tokenizer, prompts, chat=chat),
    max_new_tokens=max_new_tokens,
    sampling=Sampling(temperature, top_k, top_p, min_p),
    seed=seed,
    eos_ids=ends,
    stops=[tokenizer(stop, add_special_tokens=False)["input_ids"] for stop in stops],
  )
  return texts(tokenizer, generation, stops=stops)


def encode(tokenizer: Any, prompts: Sequence[str], *, chat: bool = False) -> list[list[int]]:
  """The ids of prompts; of users' messages where `chat`."""
  if isinstance(prompts, str):
    raise KdjaxError(f"prompts = {prompts!r}; wanted a list of texts")
  if not chat:
    return [tokenizer(prompt)["input_ids"] for prompt in prompts]
  if not tokenizer.chat_template:
    raise KdjaxError(
      "the tokenizer has no chat template, which chat needs; leave chat out, or use the tokenizer"
      " of an instruction model"
    )
  ids = []
  for prompt in prompts:
    message = [{"role": "user", "content": prompt}]
    written = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids.append(tokenizer(written, add_special_tokens=False)["input_ids"])
  return ids


def end_ids(tokenizer: Any) -> tuple[int, ...]:
  """The tokens that end a text."""
  return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def texts(tokenizer: Any, generation: Generation, *, stops: Sequence[str] = ()) -> list[str]:
  """What was written, up to the first of `stops`."""
  tokens, lengths = jax.device_get((generation.tokens, generation.lengths))
  out = []
  for row, length in zip(tokens, lengths, strict=True):
    text = tokenizer.decode(np.asarray(row[:length]).tolist(), skip_special_tokens=True)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    out.append(text[: min(found, default=len(text))])
  return out
