"""Losses on logits as objectives, without ever holding the logits of all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.objectives.base import (
  Batch,
  Objective,
  ObjectiveResult,
  PyTree,
  Taps,
  Term,
  masked_sum,
  valid,
)
from kdjax.objectives.chunks import chunked_sum, map_chunks
from kdjax.outputs import Outputs


def token_level(
  loss_fn: Callable[..., Any],
  *,
  chunk_size: int | None = None,
  labels: bool = False,
) -> Objective:
  """Lifts a loss on logits to an objective of one term, named by what it is combined under.

  With `chunk_size` the loss never sees whole logits: models hand over what their head reads and the
  head, and logits exist for one chunk of positions at a time. Memory for them falls from B T V to
  B chunk_size V, and the gradient is made in the same pass, so that no product is taken twice.

  Args:
    loss_fn: `loss_fn(student_logits, teacher, [labels], where=) -> [...]`, such as the functions of
      `kdjax.losses`; the teacher's argument is an array of logits or a signal. It may also return
      `([...], {name: [...]})`, of which the second are metrics.
    chunk_size: positions of the time axis (of the batch axis for models without one) per chunk;
      None uses logits as they are.
    labels: also pass `batch["label"]`; positions with a negative label are then not counted.

  Returns:
    The objective.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    term, parts = map_logits(loss_fn, student, teacher, batch, chunk_size=chunk_size, labels=labels)
    return ObjectiveResult(
      {"": term}, {f"loss/{name}": masked_sum(*part[:2]) for name, part in parts.items()}
    )

  return Objective(apply=apply, taps=logit_taps(chunk_size))


def logit_taps(chunk_size: int | None, *, teacher: bool = True) -> Taps:
  """The taps that `map_logits` reads."""
  side = frozenset({"logits"} if chunk_size is None else {"hidden", "head"})
  return Taps(side, side if teacher else frozenset())


def map_logits(
  loss_fn: Callable[..., Any],
  student: Outputs,
  teacher: Outputs | None,
  batch: Batch,
  *,
  chunk_size: int | None = None,
  labels: bool = False,
  beside: Sequence[Array] = (),
) -> tuple[Term, dict[str, Term]]:
  """Applies a loss to logits, whole or in chunks.

  Args:
    loss_fn: `loss_fn(student_logits, [teacher], [labels], where=)`; without `teacher` that argument
      is left out. See `token_level`. What it closes over may be differentiated.
    student: with `logits`, or with `hidden` and `head` when `chunk_size` is given.
    teacher: the same, or with a `signal`; None for a loss on labels alone.
    batch: its `mask`, its `weight` (of each position) and, if asked for, its `label`.
    chunk_size: see `token_level`.
    labels: see `token_level`.
    beside: more arrays with leading axes [B] or [B, T], which the loss gets after these.

  Returns:
    (the loss, its metrics). A term holds one value per position, or in chunks one mean whose weight
    is the number of positions.
  """
  inputs, readers = [], []
  for side, outputs in (("the student", student), ("the teacher", teacher)):
    if outputs is not None:
      source, reader = _reader(outputs, chunk_size, side)
      inputs.append(source)
      readers.append(reader)
  counted = valid(
    batch, jax.ShapeDtypeStruct(jax.tree.leaves(inputs[0])[0].shape[:-1], jnp.float32)
  )
  if labels:
    inputs.append(batch["label"])
    readers.append(lambda label: label)
    counted = counted & (batch["label"] >= 0)
  inputs += beside
  readers += [lambda x: x] * len(beside)
  weights = counted
  if "weight" in batch:
    weights = jnp.where(counted, batch["weight"], 0.0)

  def loss(student_part, others, where) -> tuple[jax.Array, dict[str, jax.Array]]:
    read = [read(x) for read, x in zip(readers, (student_part, *others), strict=True)]
    out = loss_fn(*read, where=where)
    return out if isinstance(out, tuple) else (out, {})

  if chunk_size is None:
    values, parts = loss(inputs[0], inputs[1:], counted)
    return Term(values, weights), {name: Term(part, weights) for name, part in parts.items()}
  readers[0] = lambda logits: logits
  total, parts = chunked_sum(
    loss,
    inputs[0],
    inputs[1:],
    counted,
    weights,
    chunk_size,
    student.require("head", "the student"),
  )
  count = weights.sum(dtype=jnp.float32)
  safe = jnp.maximum(count, 1e-30)
  return Term(total / safe, count), {name: Term(p / safe, count) for name, p in parts.items()}


def label_log_probs(
  outputs: Outputs,
  label: Int[Array, "*batch"],
  where: Bool[Array, "*batch"],
  *,
  chunk_size: int | None = None,
  side: str = "the student",
) -> Float[Array, "*batch"]:
  """Log-probability of each label, float32 in nats, 0 where it does not count; no gradient.

  Args:
    outputs: with `logits`, or with `hidden` and `head` when `chunk_size` is given.
    label: of each position.
    where: which count.
    chunk_size: see `token_level`.
    side: whose outputs they are, for messages.
  """
  source, read = _reader(jax.lax.stop_gradient(outputs), chunk_size, side)

  def chosen(part):
    x, label, where = part
    logits = read(jnp.where(where[..., None], x, jnp.zeros((), x.dtype))).astype(jnp.float32)
    own = jnp.take_along_axis(logits, jnp.where(where, label, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(where, own - jax.nn.logsumexp(logits, axis=-1), 0.0)

  parts = source, label, where
  return chosen(parts) if chunk_size is None else map_chunks(chosen, parts, where.shape, chunk_size)


def _reader(
  outputs: Outputs, chunk_size: int | None, side: str
) -> tuple[PyTree, Callable[[PyTree], Any]]:
  """(arrays with leading positions, function from them to logits or to a signal)."""
  if outputs.signal is not None:
    return outputs.signal, lambda signal: signal
  if chunk_size is None:
    return outputs.require("logits", side), lambda logits: logits
  return outputs.require("hidden", side), outputs.require("head", side).logits
