"""Text that teacher and student write, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdjax.generation import generate_text
from kdjax.models.base import Model, ModelVars
from kdjax.train.config import Config

Samples = dict[str, dict[str, str]]  # prompt to row to text


def write_samples(config: Config, writers: Mapping[str, tuple[Model, ModelVars, Any]]) -> Samples:
  """What each model makes of `config.samples.prompts`, greedily.

  Args:
    config: the whole config.
    writers: row of the report to a model, its variables and its tokenizer.

  Returns:
    prompt to row to the continuation; {} without prompts, or for models that do not generate.
  """
  spec = config["samples"]
  prompts = list(spec["prompts"])
  samples: Samples = {prompt: {} for prompt in prompts}
  for row, (model, variables, tokenizer) in writers.items():
    if not prompts or model.decode is None:
      continue
    texts = generate_text(
      model, variables, tokenizer, prompts, max_new_tokens=spec["max_new_tokens"], temperature=0.0
    )
    for prompt, text in zip(prompts, texts, strict=True):
      samples[prompt][row] = text
  return {prompt: rows for prompt, rows in samples.items() if rows}
