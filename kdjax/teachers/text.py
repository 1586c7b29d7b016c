"""Teachers that answer in text: all that is known of them is what they write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.text.documents import records, text_of
from kdjax.errors import KdjaxError
from kdjax.generation import Generator, Sampling
from kdjax.generation.text import texts
from kdjax.models.base import Model, ModelVars
from kdjax.paths import locate


class Prompt(NamedTuple):
  """What a teacher is asked.

  Attributes:
    system: instructions; "" for none.
    user: the message that it answers.
  """

  system: str
  user: str


class TextDecoding(NamedTuple):
  """How a teacher writes.

  Attributes:
    temperature: 0 is greedy.
    top_k: see `kdjax.generation.Sampling`.
    top_p: likewise.
    max_new_tokens: at most so many for each answer.
    seed: of all draws.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  max_new_tokens: int = 256
  seed: int = 0


class TextTeacher(NamedTuple):
  """A teacher as one function on texts.

  Attributes:
    name: tells it from every other teacher: what is kept of its answers is kept under this name.
    answer: `answer(prompts, decoding) -> answers`, as many as there are prompts.
  """

  name: str
  answer: Callable[[Sequence[Prompt], TextDecoding], list[str]]


def solver(name: str, solve: Callable[[Prompt], str]) -> TextTeacher:
  """A function as teacher; it answers each prompt alone and knows no decoding."""
  return TextTeacher(f"solver:{name}", lambda prompts, decoding: [solve(each) for each in prompts])


def recorded(path: str | Path) -> TextTeacher:
  """Answers that were written elsewhere, such as by a model behind a network.

  Args:
    path: of a JSONL file, or a folder of them, of objects with `user`, `response` and perhaps
      `system`. They are the answers of every decoding.

  Raises:
    KdjaxError: no such file, a damaged line, two answers to one prompt; when asked, a prompt that
      has no answer.
  """
  answers: dict[Prompt, str] = {}
  digest = hashlib.sha256()
  for where, record in records(path):
    system = text_of({"system": ""} | record, "system", where)
    prompt = Prompt(system, text_of(record, "user", where))
    response = text_of(record, "response", where)
    if answers.setdefault(prompt, response) != response:
      raise KdjaxError(f"{where} answers a prompt in another way than a line before; keep one")
    digest.update(repr((*prompt, response)).encode())
  if not answers:
    raise KdjaxError(f"{locate(path)} holds no answer; give a file with at least one line")

  def answer(prompts: Sequence[Prompt], decoding: TextDecoding) -> list[str]:
    if missing := [each for each in prompts if each not in answers]:
      raise KdjaxError(
        f"{path} has no answer to {len(missing)} of {len(prompts)} prompts, the first"
        f" {missing[0].user[:60]!r}; record it with the same system and user text"
      )
    return [answers[each] for each in prompts]

  return TextTeacher(f"recorded:{digest.hexdigest()[:16]}", answer)


def written(
  name: str,
  model: Model,
  variables: ModelVars,
  tokenizer: Any,
  eos_ids: Sequence[int],
) -> TextTeacher:
  """A model of this library as teacher.

  Prompts go through the tokenizer's chat template; without one the model goes on with system and
  user text, an empty line between them. An answer depends on its own prompt and the decoding, not
  on what else is asked (but for rounding), so that a generation that was killed goes on to the
  same.

  Args:
    name: of its weights, such as their fingerprint.
    model: one that decodes.
    variables: of the model.
    tokenizer: of transformers.
    eos_ids: tokens that end an answer.
  """
  generator = Generator(model)

  def ids(prompt: Prompt) -> list[int]:
    if not tokenizer.chat_template:
      return tokenizer("\n\n".join(filter(None, prompt)))["input_ids"]
    roles = zip(("system", "user"), prompt, strict=True)
    messages = [{"role": role, "content": content} for role, content in roles if content]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]

  def answer(prompts: Sequence[Prompt], decoding: TextDecoding) -> list[str]:
    generation = generator(
      variables,
      [ids(each) for each in prompts],
      max_new_tokens=decoding.max_new_tokens,
      sampling=Sampling(decoding.temperature, decoding.top_k, decoding.top_p),
      seed=decoding.seed,
      eos_ids=tuple(eos_ids),
      rows=np.array([_number(each) for each in prompts], np.int32),
    )
    return texts(tokenizer, generation)

  return TextTeacher(f"written:{name}", answer)


def _number(prompt: Prompt) -> int:
  """A number of 31 bits for a prompt, which decides its random numbers."""
  digest = hashlib.sha256(repr(tuple(prompt)).encode()).digest()
  return int.from_bytes(digest[:4], "big") >> 1
