"""Latent distillation: hidden states and attention of every student layer follow the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term, valid

FIELDS = frozenset({"hidden_states", "queries", "keys"})


def latent(
  *,
  layers: Sequence[Sequence[int]] | None = None,
  hidden_weight: float = 1.0,
  attention_weight: float = 1.0,
  relation_heads: int | None = None,
) -> Objective:
  """Mean over layers of |h_S W - h_T|^2 / D and KL(A_T || A_S): the latent loss of ERNIE-Tiny.

  Nothing of a head is read, so that a task's head gets no gradient. W [student's width, teacher's]
  is one matrix for all layers and is trained; it begins as the identity where the widths are equal.
  The paper's abstract names the loss and its public text no formula: this is the usual one of
  TinyBERT, on the layers' outputs (the embeddings are not compared), with KL on the attention.

  Args:
    layers: pairs (student layer, teacher layer) from 0; None spreads the student's M layers evenly,
      layer m on (m + 1) L / M - 1 of the teacher's L.
    hidden_weight: of the first term.
    attention_weight: of the second.
    relation_heads: attention is compared in so many heads; see `kdjax.losses.attention_relation`.
      None compares head by head.

  Returns:
    An objective with the terms "hidden" and "attention", each a mean over a sequence's own tokens.

  Raises:
    KdjaxError: when shapes are known, layers that do not exist or do not divide, or heads that do
      not fit.

  Reference:
    Su et al., "ERNIE-Tiny: A Progressive Distillation Framework for Pretrained Transformer
    Compression", 2021, https://arxiv.org/abs/2106.02241.
  """

  def init(rng, student, teacher, batch) -> ObjectiveVars:
    (depth, width), (teacher_depth, teacher_width) = (
      (side.hidden_states.shape[0], side.hidden_states.shape[-1]) for side in (student, teacher)
    )
    layer_pairs(layers, depth, teacher_depth)
    sizes = width, teacher_width
    if sizes[0] == sizes[1]:
      return ObjectiveVars({"projection": jnp.eye(sizes[0])})
    return ObjectiveVars({"projection": jax.random.normal(rng, sizes) * sizes[0] ** -0.5})

  def apply(variables, student, teacher, batch, *, step, rng):
    ours, theirs = (side.hidden_states for side in (student, teacher))
    pairs = layer_pairs(layers, len(ours), len(theirs))
    ours = ours.astype(jnp.float32)
    segments = batch.get("segment_ids")
    tokens = jnp.ones(ours[0].shape[:2], bool) if segments is None else segments > 0
    projection = variables.params["projection"]
    hidden = [squared_error(ours[s] @ projection, theirs[t], tokens) for s, t in pairs]
    attention = [
      losses.attention_relation(
        student.queries[s],
        teacher.queries[t],
        student.keys[s],
        teacher.keys[t],
        relation_heads=relation_heads,
        segments=segments,
      )
      for s, t in pairs
    ]
    where = valid(batch, hidden[0]) if batch.get("mask", tokens).ndim == 1 else tokens.any(1)
    return ObjectiveResult(
      {
        "hidden": Term(sum(hidden) / len(pairs), where, hidden_weight),
        "attention": Term(sum(attention) / len(pairs), where, attention_weight),
      }
    )

  return Objective(apply=apply, taps=Taps(FIELDS, FIELDS), init=init)


def layer_pairs(
  layers: Sequence[Sequence[int]] | None, student: int, teacher: int
) -> list[tuple[int, int]]:
  """The pairs of layers to compare, of models with so many; see `latent`."""
  if layers is None:
    if teacher % student:
      raise KdjaxError(
        f"latent: the teacher's {teacher} layers are no multiple of the student's {student}; give"
        " the pairs to compare as layers, such as [[0, 1], [1, 3]]"
      )
    return [(m, (m + 1) * teacher // student - 1) for m in range(student)]
  pairs = [tuple(pair) for pair in layers]
  fits = [len(p) == 2 and 0 <= p[0] < student and 0 <= p[1] < teacher for p in pairs]
  if not pairs or not all(fits):
    raise KdjaxError(
      f"latent: layers = {pairs} must be pairs of a student layer from 0 to {student - 1} and a"
      f" teacher layer from 0 to {teacher - 1}, at least one"
    )
  return pairs


def squared_error(
  student: Float[Array, "batch time width"],
  teacher: Float[Array, "batch time width"],
  tokens: Bool[Array, "batch time"],
) -> Float[Array, "batch"]:
  """The mean over width and each sequence's own tokens; 0 of a sequence without any."""
  where = tokens[..., None]
  difference = jnp.where(where, student - teacher.astype(jnp.float32), 0.0)
  each = jnp.mean(jnp.square(difference), axis=-1)
  return each.sum(1) / jnp.maximum(tokens.sum(1), 1).astype(jnp.float32)
