"""What a checkpoint's model writes, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.data.text import TextPairs
from kdjax.data.tokenizers import load_tokenizer
from kdjax.errors import KdjaxError
from kdjax.generation import Generator, Sampling, emulated, emulated_variables, speculate
from kdjax.generation.text import encode, end_ids, texts
from kdjax.models.base import Model, ModelVars
from kdjax.models.convert import open_checkpoint
from kdjax.models.pretrained import pretrained
from kdjax.models.transformer import Seq2SeqSpec
from kdjax.train.build import build_model, is_text
from kdjax.train.config import Config, check_config
from kdjax.train.mesh import TEACHER_RULES, make_mesh
from kdjax.train.pretrained import load_model
from kdjax.train.streams import load_data


class Written(NamedTuple):
  """Continuations of prompts.

  Attributes:
    texts: one for each prompt.
    continues: whether each goes on where its prompt ends, rather than answering it.
    tokens: how many were generated, all prompts together.
    seconds: that this took, prompts read and all; nothing is compiled in this time.
    accepted: the share of drafted tokens that were kept; None without drafts.
  """

  texts: list[str]
  continues: bool
  tokens: int
  seconds: float
  accepted: float | None = None


class Emulation(NamedTuple):
  """Fine-tuning to be emulated while the checkpoint's model writes; see `emulated_logits`.

  Attributes:
    tuned: checkpoints of other libraries, one for each behaviour.
    reference: what they were fine-tuned from; "" for the model that writes.
    weights: one for each of `tuned`.
    nucleus: None changes all tokens.
    draft_tokens: that the first of `tuned` drafts in each round; 0 for none.
  """

  tuned: Sequence[str]
  reference: str = ""
  weights: Sequence[float] = (1.0,)
  nucleus: float | None = None
  draft_tokens: int = 0


class Writer(NamedTuple):
  """A model that can write: with weights, a tokenizer, and the tokens that end a text.

  `ids` makes tokens of prompts that are sources of pairs; None for texts to go on with.
  """

  model: Model
  variables: ModelVars
  tokenizer: Any
  eos_ids: tuple[int, ...]
  ids: Callable[[Sequence[str]], list[list[int]]] | None = None


def write(
  checkpoint: str,
  prompts: Sequence[str],
  *,
  config: Config | None = None,
  max_new_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  chat: bool = False,
  emulation: Emulation | None = None,
) -> Written:
  """Continues prompts with the model of a checkpoint.

  Args:
    checkpoint: a Hugging Face folder, a GGUF file or package:NAME; with a config, the folder of its
      run.
    prompts: all are continued together.
    config: of the run, whose student writes; None for a checkpoint of another library.
    max_new_tokens: at most so many for each.
    sampling: how tokens are drawn.
    seed: of all draws.
    chat: the prompts are users' messages.
    emulation: the model writes as if it had been fine-tuned; None for as it is.

  Raises:
    KdjaxError: no checkpoint or tokenizer there, a model that does not generate, an option out of
      its range, models of different tokenizers.
  """
  writer = open_writer(checkpoint) if config is None else _open_run(config, Path(checkpoint))
  if writer.ids is None or chat:
    ids = encode(writer.tokenizer, prompts, chat=chat)
  else:
    ids = writer.ids(prompts)
  if emulation is not None:
    tuned = [open_writer(path) for path in emulation.tuned]
    writer = _emulated(writer, tuned, emulation)
    if emulation.draft_tokens:
      return _drafted(
        writer,
        tuned[0],
        ids,
        emulation.draft_tokens,
        continues=not chat,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
      )
  run = Generator(writer.model).compiled(
    writer.variables,
    ids,
    max_new_tokens=max_new_tokens,
    sampling=sampling,
    seed=seed,
    eos_ids=writer.eos_ids,
  )
  start = time.perf_counter()
  generation = jax.block_until_ready(run())
  seconds = time.perf_counter() - start
  return Written(
    texts(writer.tokenizer, generation),
    continues=not chat and not isinstance(writer.model.spec, Seq2SeqSpec),
    tokens=int(generation.lengths.sum()),
    seconds=seconds,
  )


def _emulated(writer: Writer, tuned: Sequence[Writer], emulation: Emulation) -> Writer:
  """The writer with what fine-tuning changed; texts end where the tuned models end them, too."""
  reference = open_writer(emulation.reference) if emulation.reference else None
  others = [*([reference] if reference else []), *tuned]
  own = writer.tokenizer.get_vocab()
  for other in others:
    if (found := other.tokenizer.get_vocab()) != own:
      raise KdjaxError(
        "emulation adds logits token by token, and a checkpoint has another tokenizer"
        f" ({len(found)} tokens) than the model that writes ({len(own)}); all must have one"
      )
  model = emulated(
    writer.model,
    reference and reference.model,
    [each.model for each in tuned],
    weights=emulation.weights,
    nucleus=emulation.nucleus,
  )
  variables = emulated_variables([each.variables for each in (writer, *others)])
  ends = sorted({token for each in (writer, *tuned) for token in each.eos_ids})
  return Writer(model, variables, writer.tokenizer, tuple(ends))


def _drafted(
  writer: Writer,
  draft: Writer,
  prompts: Sequence[Sequence[int]],
  draft_tokens: int,
  *,
  continues: bool,
  max_new_tokens: int,
  sampling: Sampling,
  seed: int,
) -> Written:
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  if not lengths.all():
    raise KdjaxError("a prompt is empty; give at least one token")
  padded = np.zeros((len(prompts), max(lengths)), np.int32)
  for row, prompt in zip(padded, prompts, strict=True):
    row[: len(prompt)] = prompt

  def run(variables: ModelVars, draft_variables: ModelVars):
    return speculate(
      writer.model,
      variables,
      draft.model,
      draft_variables,
      padded,
      lengths,
      draft_tokens=draft_tokens,
      rng=jax.random.key(seed),
      max_new_tokens=max_new_tokens,
      sampling=sampling,
      eos_ids=writer.eos_ids,
    )

  arguments = writer.variables, draft.variables
  compiled = jax.jit(run).lower(*arguments).compile()
  start = time.perf_counter()
  generation, counted = jax.block_until_ready(compiled(*arguments))
  seconds = time.perf_counter() - start
  drafted = max(draft_tokens * int(counted.passes.sum()), 1)
  return Written(
    texts(writer.tokenizer, generation),
    continues=continues,
    tokens=int(generation.lengths.sum()),
    seconds=seconds,
    accepted=int(counted.accepted.sum()) / drafted,
  )


def open_writer(path: str) -> Writer:
  model, tokenizer = pretrained(path=path), load_tokenizer(path)
  # A chat model may end its turn with another token than the one that ends a text.
  more = open_checkpoint(path).config.get("eos_token_id")
  more = more if isinstance(more, list) else [more]
  ends = {*end_ids(tokenizer), *(token for token in more if token is not None)}
  return Writer(model, model.start(), tokenizer, tuple(sorted(ends)))


def _open_run(config: Config, folder: Path) -> Writer:
  check_config(config)
  data = load_data(config["data"]).whole
  if not is_text(data):
    raise KdjaxError(
      f"config.data.name = {config['data']['name']!r} has no tokenizer: its models write no text"
    )
  model = build_model(config["student"], data, "config.student")
  weights = load_model(folder, model, make_mesh(**config["mesh"]), TEACHER_RULES)
  if model.merged is not None:  # adapters: the weights beneath them are not in the checkpoint
    weights = weights._replace(frozen=model.start().frozen)
  ids = data.source_ids if isinstance(data, TextPairs) else None
  return Writer(model, weights, data.tokenizer, end_ids(data.tokenizer), ids)
