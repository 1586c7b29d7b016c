"""Graded answers: the student writes each target greedily, inside the compiled evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.evaluation.answers import answer_match
from kdjax.generation import GREEDY, generate
from kdjax.models.base import Model, ModelVars
from kdjax.programs.evaluators import Evaluator, Metrics, Tell
from kdjax.teachers.base import Teacher


def with_answers(
  evaluator: Evaluator,
  *,
  answer_token: int,
  source_length: int,
  eos_ids: Sequence[int],
  joined: bool,
) -> Evaluator:
  """Another evaluator's metrics and `exact_match`, the share of right answers.

  Args:
    evaluator: gives the other metrics.
    answer_token: see `kdjax.evaluation.answers.answer_match`.
    source_length: places of a row's source, S.
    eos_ids: tokens that end a target.
    joined: whether rows are for decoders; see `kdjax.data.text.PairRows`.
  """

  def made(student: Model, teacher: Teacher):
    others = evaluator(student, teacher)

    def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
      metrics = others(variables, tell, batch)
      if student.decode is None:
        return metrics
      heard = batch["segment_ids"][:, :source_length] > 0
      lengths = heard.sum(-1, dtype=jnp.int32)
      sources, label = batch["tokens"][:, :source_length], batch["label"]
      if joined:  # its source stands on the right of its places, its target one place early
        places = jnp.arange(source_length)[None] + source_length - lengths[:, None]
        sources = jnp.take_along_axis(sources, places % source_length, 1)
        label = label[:, source_length - 1 : -1]
      written = generate(
        student,
        variables,
        sources,
        jnp.maximum(lengths, 1),  # rows that fill up a batch have no source
        rng=jax.random.key(0),
        max_new_tokens=label.shape[1],
        sampling=GREEDY,
        eos_ids=eos_ids,
      )
      right = answer_match(
        written.tokens, written.lengths, label, (label >= 0).sum(-1), answer_token
      )
      there = batch["mask"].any(-1)
      pair = (right & there).sum(dtype=jnp.float32), there.sum(dtype=jnp.float32)
      return metrics | {"exact_match": pair}

    return evaluate

  return made
