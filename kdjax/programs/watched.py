"""A program whose evaluation also says how far its student is from teacher and oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.generation import Sampling
from kdjax.generation.generate import continued
from kdjax.models.base import Batch, Decoding, Model, ModelVars
from kdjax.objectives.base import Pair, masked_sum
from kdjax.objectives.chunks import sum_chunks
from kdjax.outputs import Outputs
from kdjax.programs import rollouts
from kdjax.programs.base import Program
from kdjax.programs.evaluators import CHUNK, HEADED
from kdjax.resolve import hint
from kdjax.teachers.base import Teacher

DRAWN_FROM = ("student", "other")
DIVERGENCES = ("reverse_kl", "forward_kl")
Tell = Callable[[Batch], Outputs]


class Watched(NamedTuple):
  """The frozen arrays of a program, and the oracle's."""

  program: Any
  oracle: Any


def watched(
  program: Program,
  student: Model,
  teacher: Teacher,
  oracle: Teacher,
  *,
  prompt_length: int,
  drawn_from: str = "student",
  divergence: str = "reverse_kl",
  eos_ids: Sequence[int] = (),
) -> Program:
  """The program, whose evaluation has `proxy` and `golden`, too; it learns as it did.

  Proxy is the student's distance to the teacher, golden that to the oracle, which the student never
  sees: exact divergences of next tokens, averaged over the tokens of texts that continue the
  evaluation rows' beginnings. The same rows are continued with the same random numbers each time.

  Args:
    program: `distill` or `on_policy`, or one with their state.
    student: its student, a causal language model.
    teacher: its teacher.
    oracle: what stands for the truth, over the same tokens; it can write where `drawn_from` is
      "other".
    prompt_length: see `rollouts.beginnings`.
    drawn_from: "student": both distances are on the student's texts; "other": on the teacher's and
      on the oracle's.
    divergence: "reverse_kl", KL(student || other), or "forward_kl", KL(other || student).
    eos_ids: tokens that end a text.

  Returns:
    The program; `proxy` and `golden` are in nats a token.

  Raises:
    KdjaxError: options that do not exist, or models over different tokens.
  """
  check_distance(drawn_from, divergence)
  sizes = {student.num_classes, teacher.num_classes, oracle.num_classes}
  if len(sizes) > 1:
    raise KdjaxError(f"student, teacher and oracle have different class counts: {sorted(sizes)}")

  def evaluate(state, frozen: Watched, batch):
    metrics = program.evaluate(state, frozen.program, batch)
    params = state.ema if jax.tree.leaves(state.ema) else state.params
    variables = ModelVars(params, state.model_state, frozen.program.student)
    own = lambda rows: student.apply(variables, rows, taps=HEADED)[0]  # noqa: E731
    sides = {
      "proxy": (teacher, frozen.program.teacher, state.teacher_state),
      "golden": (oracle, frozen.oracle, ()),
    }
    for name, (other, weights, other_state) in sides.items():
      writer = student.decode(variables) if drawn_from == "student" else other.decode(weights)
      metrics[name] = distance(
        writer,
        own,
        lambda rows, o=other, w=weights, s=other_state: o.apply(w, s, rows, taps=HEADED),
        batch,
        prompt_length=prompt_length,
        divergence=divergence,
        eos_ids=eos_ids,
      )
    return metrics

  return program._replace(
    step=lambda state, frozen, batch: program.step(state, frozen.program, batch),
    evaluate=evaluate,
    prepare=program.prepare
    and (lambda state, frozen, batch: program.prepare(state, frozen.program, batch)),
    frozen=Watched(program.frozen, oracle.frozen),
    frozen_axes=Watched(program.frozen_axes, oracle.axes),
  )


def check_distance(drawn_from: str, divergence: str) -> None:
  """Raises KdjaxError for options of `watched` that do not exist."""
  for name, value, known in (
    ("drawn_from", drawn_from, DRAWN_FROM),
    ("divergence", divergence, DIVERGENCES),
  ):
    if value not in known:
      raise KdjaxError(f"{name} = {value!r} does not exist{hint(value, known)}")


def distance(
  writer: Decoding,
  own: Tell,
  other: Tell,
  batch: Batch,
  *,
  prompt_length: int,
  divergence: str = "reverse_kl",
  eos_ids: Sequence[int] = (),
) -> Pair:
  """The divergence between two models' next tokens on texts that one of them writes.

  Args:
    writer: continues the rows' beginnings, drawing at temperature 1 with random numbers that depend
      on a row's `index` alone.
    own: outputs with `hidden` and `head` of rows.
    other: the same, of the other model.
    batch: rows of text.
    prompt_length: see `rollouts.beginnings`.
    divergence: a loss of `kdjax.losses`, `own` being its student.
    eos_ids: tokens that end a text.

  Returns:
    (sum over the tokens that were written, their number), in nats.
  """
  prompts = rollouts.beginnings(batch, prompt_length)
  length = batch["tokens"].shape[1]
  written = continued(
    writer,
    prompts.tokens,
    prompts.lengths,
    rng=jax.random.key(0),
    max_new_tokens=length - prompts.tokens.shape[1],
    sampling=Sampling(),
    eos_ids=eos_ids,
    rows=jnp.maximum(batch["index"], 0),
  )
  rows = rollouts.written_rows(prompts, written, length)
  ours, theirs = own(rows), other(rows)
  loss = getattr(losses, divergence)

  def chunk(part):
    hidden, told, where = part
    values = loss(ours.head.logits(hidden), theirs.head.logits(told), where=where)
    return masked_sum(values, where)

  return sum_chunks(chunk, (ours.hidden, theirs.hidden, rows["mask"]), rows["mask"].shape, CHUNK)
