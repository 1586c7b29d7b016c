"""GOLD: a teacher of another tokenizer, compared where both sides' tokens spell the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Term, masked_sum
from kdjax.objectives.chunks import chunked_sum, map_chunks
from kdjax.objectives.sequences import Side, at_positions, group_counterparts, mean_weights, sides
from kdjax.objectives.tokens import logit_taps, map_logits
from kdjax.outputs import Outputs

SMALLEST = 1e-8  # below which TRL takes no probability


class _Tokens(NamedTuple):
  """Ids of tokens: those that both vocabularies have, in one order, and the others of each."""

  student: np.ndarray
  teacher: np.ndarray
  student_rest: np.ndarray
  teacher_rest: np.ndarray


def gold(
  *,
  shared_tokens: tuple[Sequence[int], Sequence[int]],
  kd_weight: float = 1.0,
  ce_weight: float = 0.0,
  beta: float = 0.5,
  matched_weight: float | None = None,
  unmatched_weight: float | None = None,
  temperature: float = 1.0,
  legacy: bool = False,
  chunk_size: int | None = None,
) -> Objective:
  """Logit distillation over groups of tokens that spell the same bytes on both sides.

  The tokens of a group are merged by the chain rule: what the model says of the last one, times the
  probabilities that it gave to those before. The probabilities of tokens that both vocabularies
  have are then compared one by one, by a generalised Jensen-Shannon divergence in which all that is
  left of each side is one more outcome; those of the others are sorted and compared as in `uld`.
  The loss is averaged over the groups of a sequence, then over sequences.

  Args:
    shared_tokens: (student's ids, teacher's ids) of the tokens that both vocabularies have; from a
      config, those of the data. Two empty lists compare all by sorting.
    kd_weight: of the distillation loss.
    ce_weight: of the cross-entropy with labels, averaged over all positions; 0 leaves it out.
    beta: of the divergence, see `kdjax.losses.generalized_jsd`.
    matched_weight: of the divergence; None for the share of the teacher's vocabulary that both
      have, and the rest for the sorted distance.
    unmatched_weight: of the sorted distance; given with `matched_weight` or not at all.
    temperature: > 0; divides both sides' logits, also where tokens are merged.
    legacy: as TRL computes it: no outcome for what is left, so that the divergence is of vectors
      that sum to less than 1 and may be negative, and no probability below 1e-8.
    chunk_size: see `token_level`; the student's head is then read twice, for the tokens of groups
      and for their last positions.

  Returns:
    An objective over batches of `config.data.teacher_tokenizer`. TRL's strategy "bayesian" is the
    only one; its "observed" multiplies with the probabilities of the tokens after those it means.

  Raises:
    KdjaxError: a value out of range; when traced, a batch without groups.

  Reference:
    "Unlocking On-Policy Distillation for Any Model Family", 2025,
    https://huggingface.co/spaces/HuggingFaceH4/on-policy-distillation
    (huggingface/trl, trl/experimental/gold/gold_trainer.py).
  """
  if not temperature > 0:
    raise KdjaxError(f"gold: temperature = {temperature} must be positive")
  if not 0 <= beta <= 1:
    raise KdjaxError(f"gold: beta = {beta} must lie in [0, 1]")
  if (matched_weight is None) != (unmatched_weight is None):
    raise KdjaxError("gold: give matched_weight and unmatched_weight both, or neither")
  if len(shared_tokens[0]) != len(shared_tokens[1]):
    raise KdjaxError("gold: shared_tokens must hold as many ids of the student as of the teacher")

  def distance(student: Array, teacher: Array, where: Array) -> tuple[Array, dict[str, Array]]:
    """The loss of merged log-probabilities [..., V], position by position."""
    tokens = _tokens(shared_tokens, student.shape[-1], teacher.shape[-1])
    share = len(tokens.teacher) / teacher.shape[-1]
    matched, unmatched = (
      (share, 1 - share) if matched_weight is None else (matched_weight, unmatched_weight)
    )
    if not len(tokens.student):  # nothing is weighed against the sorted distance
      unmatched = 1.0
    pair = student, jax.lax.stop_gradient(teacher)
    parts = {}
    if len(tokens.student):
      compare = _legacy_divergence if legacy else _divergence
      parts["matched"] = jnp.where(where, compare(*pair, tokens, beta), 0.0)
    if len(tokens.student_rest) and len(tokens.teacher_rest):
      rest = pair[0][..., tokens.student_rest], pair[1][..., tokens.teacher_rest]
      apart = losses.sorted_distance(*map(jnp.exp, rest))
      parts["unmatched"] = jnp.where(where, apart, 0.0)
    weights = {"matched": matched, "unmatched": unmatched}
    return sum((weights[name] * part for name, part in parts.items()), jnp.float32(0)), parts

  def apply(variables, student, teacher, batch, *, step, rng):
    own, theirs = sides(batch)
    groups = group_counterparts(own, theirs, batch)
    scales = []
    for outputs, side, ends in (
      (student, own, groups.student_last),
      (teacher, theirs, groups.teacher_last),
    ):
      before = side.where & (ends.group >= 0) & ~ends.where
      floor = jnp.log(SMALLEST) if legacy else None
      spoken = _label_log_probs(outputs, side, before, temperature, chunk_size, floor)
      scales.append(ends.sums(spoken))
    beside = at_positions(teacher, groups.places, "the teacher")
    told = jnp.take_along_axis(scales[1], groups.places, axis=1)
    where = groups.where
    weights = mean_weights(where, own.segments)
    heads = [_reader(outputs, chunk_size, temperature) for outputs in (student, beside)]

    def loss(inputs, fixed, where):
      merged = [
        read(_clean(x, where)) + jnp.where(where, scale, 0.0)[..., None]
        for (_, read), (x, scale) in zip(heads, (inputs, fixed), strict=True)
      ]
      return distance(*merged, where)

    inputs, fixed = (heads[0][0], scales[0]), (heads[1][0], told)
    if chunk_size is None:
      values, parts = loss(inputs, fixed, where)
      term = Term(values, weights, kd_weight)
      parts = {name: masked_sum(part, weights) for name, part in parts.items()}
    else:
      total, parts = chunked_sum(loss, inputs, fixed, where, weights, chunk_size)
      count = weights.sum()
      term = Term(total / jnp.maximum(count, 1e-30), count, kd_weight)
      parts = {name: (part, count) for name, part in parts.items()}
    terms = {"kd": term}
    if ce_weight:
      ce, _ = map_logits(
        losses.cross_entropy, student, None, batch, chunk_size=chunk_size, labels=True
      )
      terms["ce"] = ce._replace(weight=ce_weight)
    return ObjectiveResult(terms, {f"loss/{name}": pair for name, pair in parts.items()})

  return Objective(apply=apply, taps=logit_taps(chunk_size), across_vocabularies=True)


def _tokens(shared: tuple[Sequence[int], Sequence[int]], student: int, teacher: int) -> _Tokens:
  ids = [np.asarray(own, np.int64) for own in shared]
  rest = []
  for own, size, who in zip(ids, (student, teacher), ("student", "teacher"), strict=True):
    if len(own) and not 0 <= own.min() <= own.max() < size:
      raise KdjaxError(
        f"gold: shared_tokens has the {who}'s ids {own.min()} to {own.max()}, and its logits have"
        f" {size} classes"
      )
    rest.append(np.setdiff1d(np.arange(size), own))
  return _Tokens(*ids, *rest)


def _divergence(student: Array, teacher: Array, tokens: _Tokens, beta: float) -> Array:
  """The divergence over shared tokens and one outcome for all that is left of each side."""
  completed = [
    jnp.concatenate([side[..., own], _log_left(side, rest)[..., None]], axis=-1)
    for side, own, rest in (
      (student, tokens.student, tokens.student_rest),
      (teacher, tokens.teacher, tokens.teacher_rest),
    )
  ]
  return losses.generalized_jsd(*completed, beta=beta)


def _log_left(log_probs: Array, rest: np.ndarray) -> Array:
  """log of the mass of the tokens `rest` and of what merging took from all tokens."""
  total = jax.nn.logsumexp(log_probs, axis=-1)
  left = jnp.maximum(-jnp.expm1(jnp.minimum(total, 0.0)), 0.0)
  left = left + jnp.exp(log_probs[..., rest]).sum(-1)
  some = left > SMALLEST**2
  return jnp.where(some, jnp.log(jnp.where(some, left, 1.0)), -jnp.inf)


def _legacy_divergence(student: Array, teacher: Array, tokens: _Tokens, beta: float) -> Array:
  floor = jnp.log(SMALLEST)
  q = jnp.maximum(student[..., tokens.student], floor)
  p = jnp.maximum(teacher[..., tokens.teacher], floor)
  if beta == 0:
    return (jnp.exp(p) * (p - q)).sum(-1)
  if beta == 1:
    return (jnp.exp(q) * (q - p)).sum(-1)
  mixture = jnp.logaddexp(q + jnp.log1p(-beta), p + jnp.log(beta))
  one, other = (jnp.exp(x) * (x - mixture) for x in (p, q))
  return (beta * one + (1 - beta) * other).sum(-1)


def _reader(outputs: Outputs, chunk_size: int | None, temperature: float):
  """(what log-probabilities are made of, position by position; how)."""
  if chunk_size is None:
    source, head = outputs.require("logits", "a side"), lambda logits: logits
  else:
    source, head = outputs.require("hidden", "a side"), outputs.require("head", "a side").logits
  return source, lambda x: jax.nn.log_softmax(head(x).astype(jnp.float32) / temperature)


def _label_log_probs(
  outputs: Outputs,
  side: Side,
  where: Bool[Array, "batch time"],
  temperature: float,
  chunk_size: int | None,
  floor: float | None,
) -> Float[Array, "batch time"]:
  """Log-probability of each label, 0 where it does not count."""
  source, read = _reader(outputs, chunk_size, temperature)

  def chosen(part):
    x, label, where = part
    log_probs = read(_clean(x, where))
    own = jnp.take_along_axis(log_probs, jnp.where(where, label, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(where, own if floor is None else jnp.maximum(own, floor), 0.0)

  parts = source, side.label, where
  return chosen(parts) if chunk_size is None else map_chunks(chosen, parts, where.shape, chunk_size)


def _clean(x: Array, where: Array) -> Array:
  return jnp.where(where[..., None], x, jnp.zeros((), x.dtype))
