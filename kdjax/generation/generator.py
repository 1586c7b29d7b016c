"""Prompts of any length to a few compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from kdjax.errors import KdjaxError
from kdjax.generation.generate import Generation, check_generation, generate
from kdjax.generation.sampling import Sampling
from kdjax.models.base import Model, ModelVars

SHORTEST = 32  # places for a prompt in the smallest program
_STATIC = ("max_new_tokens", "eos_ids", "stops", "pad_id")


class Generator:
  """`generate` on lists of token ids, with the programs that it has compiled.

  Prompts are padded to 32, 64, 128, ... tokens. A program is compiled for each such length, number
  of rows and max_new_tokens, and for each set of sampling options that are given; their values, the
  seed and the weights are arguments of it.
  """

  def __init__(self, model: Model):
    self._model = model
    self._run = jax.jit(
      lambda variables, *args, **options: generate(model, variables, *args, **options),
      static_argnames=_STATIC,
    )

  @property
  def programs(self) -> int:
    """How many have been compiled."""
    return self._run._cache_size()

  def __call__(
    self, variables: ModelVars, prompts: Sequence[Sequence[int]], **options: Any
  ) -> Generation:
    """Continues prompts.

    Args:
      variables: of the model.
      prompts: ids; they may differ in length.
      **options: max_new_tokens, sampling, eos_ids, stops, pad_id and rows of `generate`; `seed` of
        all draws (0); `sharding` of the rows, such as that of a training batch.

    Returns:
      What was written, on the devices.

    Raises:
      KdjaxError: see `generate`; no prompts, an empty one, or an id that the model does not have.
    """
    arguments, named = self._arguments(variables, prompts, **options)
    return self._run(*arguments, **named)

  def compiled(
    self, variables: ModelVars, prompts: Sequence[Sequence[int]], **options: Any
  ) -> Callable[[], Generation]:
    """The same call with its program compiled, for timing it."""
    arguments, named = self._arguments(variables, prompts, **options)
    program = self._run.lower(*arguments, **named).compile()
    traced = {name: value for name, value in named.items() if name not in _STATIC}
    return lambda: program(*arguments, **traced)

  def _arguments(
    self,
    variables: ModelVars,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008, a tuple of numbers
    eos_ids: Sequence[int] = (),
    stops: Sequence[Sequence[int]] = (),
    pad_id: int = 0,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    sharding: NamedSharding | None = None,
  ) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(arguments, named arguments) of the compiled function."""
    if not len(prompts):
      raise KdjaxError("prompts is empty; give at least one")
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
      raise KdjaxError(
        f"prompts[{int(np.argmin(lengths))}] is empty; give at least one token, such as the one"
        " that begins a text"
      )
    longest = int(lengths.max())
    check_generation(self._model, longest, max_new_tokens, sampling, eos_ids, stops)
    width = bucket(longest, self._model.spec.room(max_new_tokens))
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
      row[: len(prompt)] = prompt
    if padded.min() < 0 or padded.max() >= self._model.num_classes:
      wrong = next(i for i in padded.flat if not 0 <= i < self._model.num_classes)
      raise KdjaxError(
        f"a prompt has the id {wrong}; the model has 0 to {self._model.num_classes - 1}. Is the"
        " tokenizer another model's?"
      )
    numbers = np.arange(len(prompts)) if rows is None else np.asarray(rows)
    arrays: Any = padded, lengths, numbers.astype(np.int32)
    if sharding is not None:
      arrays = jax.device_put(arrays, sharding)
    options = {
      "rows": arrays[2],
      "rng": jax.random.key(seed),
      "max_new_tokens": max_new_tokens,
      "sampling": _arrays(sampling),
      "eos_ids": tuple(eos_ids),
      "stops": tuple(map(tuple, stops)),
      "pad_id": pad_id,
    }
    return (variables, *arrays[:2]), options


def _arrays(sampling: Sampling) -> Sampling:
  """The options as arrays, so that 1 and 1.0 are one program's."""
  floats = {
    name: None if value is None else jnp.asarray(value, jnp.float32)
    for name, value in sampling._asdict().items()
  }
  top_k = None if sampling.top_k is None else jnp.asarray(sampling.top_k, jnp.int32)
  return Sampling(**{**floats, "top_k": top_k})


def bucket(length: int, most: int) -> int:
  """The places for a prompt of `length` tokens: a power of two, at least 32, at most `most`."""
  return min(max(SHORTEST, 1 << (length - 1).bit_length()), most)
