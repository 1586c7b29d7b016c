"""CRD: a student's feature is to be told from all others by the teacher's of the same image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.losses.resize import product
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.features import beside_labels, counted
from kdjax.objectives.networks import apply_mlp, init_mlp

ABSENT = -2


class Banks(NamedTuple):
  """What is kept of every training example, by its index.

  Attributes:
    student: embeddings of length 1 (random at the start).
    teacher: the same.
    scale: what scores are divided by for the student and for the teacher; 0 before the first step.
    label: the class, whose other examples are no negatives; -2 for an index without an example.
  """

  student: Float[Array, "examples width"]
  teacher: Float[Array, "examples width"]
  scale: Float[Array, "2"]
  label: Int[Array, "examples"]


class Seen(NamedTuple):
  """What a step tells the banks."""

  index: Int[Array, "batch"]  # as many as there are examples, where a row does not count
  student: Float[Array, "batch width"]
  teacher: Float[Array, "batch width"]
  scale: Float[Array, "2"]


def contrastive_representation(
  *,
  examples: int,
  width: int = 128,
  negatives: int = 16_384,
  temperature: float = 0.07,
  momentum: float = 0.5,
  feature_weight: float = 0.8,
  ce_weight: float = 1.0,
) -> Objective:
  """Noise-contrastive estimation of which of K + 1 embeddings belongs to the same image.

  Both sides' pooled features go through a learned linear layer to length 1. A student's embedding
  is scored as exp(s . t / temperature) / Z against a bank of the teacher's embeddings, and a
  teacher's against one of the student's. The negatives are drawn uniformly among the examples of
  other classes, with replacement (the official code draws without where it can); an example without
  a label counts as what the teacher takes it for. Z is set in the first step to the mean score
  times `examples`. After each step the banks move towards the batch's embeddings; of an index that
  comes twice the mean is taken.

  Args:
    examples: indices of the training data are below it; a job fills it in.
    width: of the embeddings.
    negatives: K, drawn for each example in each step.
    temperature: > 0.
    momentum: share of a bank's old value, in [0, 1).
    feature_weight: of the contrast, summed over both sides.
    ce_weight: of the labels; 0 leaves them out.

  Returns:
    An objective that learns the two layers and carries the banks.

  Raises:
    KdjaxError: a value out of range.

  Reference:
    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020,
    https://arxiv.org/abs/1910.10699 (HobbitLong/RepDistiller, crd/).
  """
  if examples < 1 or width < 1 or negatives < 1:
    raise KdjaxError(
      f"contrastive_representation: examples = {examples}, width = {width} and negatives ="
      f" {negatives} must be at least 1"
    )
  if not temperature > 0 or not 0 <= momentum < 1:
    raise KdjaxError(
      f"contrastive_representation: temperature = {temperature} must be above 0 and momentum ="
      f" {momentum} in [0, 1)"
    )

  def init(rng, student, teacher, batch):
    keys = jax.random.split(rng, 4)
    layers = {
      side: init_mlp(key, (out.embedding.shape[-1], width))
      for side, key, out in zip(("student", "teacher"), keys[:2], (student, teacher), strict=True)
    }
    reach = (3 / width) ** 0.5
    banks = [
      jax.random.uniform(key, (examples, width), minval=-reach, maxval=reach) for key in keys[2:]
    ]
    label = jnp.full(examples, ABSENT, jnp.int32)
    return ObjectiveVars(layers, Banks(*banks, jnp.zeros(2), label))

  def prepare(variables, teacher, batch):
    state, own = variables.state, batch["label"]
    label = jnp.where(own >= 0, own, jnp.argmax(teacher.logits, axis=-1).astype(own.dtype))
    place = _places(batch, counted(batch, own), examples)
    return variables._replace(
      state=state._replace(label=state.label.at[place].set(label, mode="drop"))
    )

  def apply(variables, student, teacher, batch, *, step, rng):
    params, banks = variables
    s, t = embed(params["student"], student.embedding), embed(params["teacher"], teacher.embedding)
    where = counted(batch, s)
    own = jnp.where(where, batch["index"], 0)
    drawn = draw_negatives(rng, banks.label, own, negatives)
    candidates = jnp.concatenate([own[:, None], drawn], axis=1)
    values, scale = contrast(banks, s, t, candidates, where, temperature)
    index = _places(batch, where, examples)
    seen = jax.lax.stop_gradient(Seen(index, s, t, scale))
    return ObjectiveResult({"": Term(values, where)}, stats=seen)

  def update(banks: Banks, seen: Seen, *, step) -> Banks:
    index, s, t = (x.reshape((-1, *x.shape[2:])) for x in seen[:3])
    return banks._replace(
      student=_moved(banks.student, index, s, momentum),
      teacher=_moved(banks.teacher, index, t, momentum),
      scale=jnp.where(banks.scale > 0, banks.scale, seen.scale.mean(0)),
    )

  contrasted = Objective(
    apply=apply,
    taps=Taps(frozenset({"embedding"}), frozenset({"embedding", "logits"})),
    init=init,
    update=update,
    prepare=prepare,
  )
  return beside_labels(contrasted, feature_weight, ce_weight)


def embed(layer, features: Float[Array, "batch width"]) -> Float[Array, "batch new_width"]:
  """A linear layer, then length 1."""
  x = apply_mlp(layer, features)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def contrast(
  banks: Banks,
  student: Float[Array, "batch width"],
  teacher: Float[Array, "batch width"],
  candidates: Int[Array, "batch candidate"],
  where,
  temperature: float,
) -> tuple[Float[Array, "batch"], Float[Array, "2"]]:
  """(loss of both sides by example, Z of both): the banks' own Z, or this batch's before that."""
  examples = len(banks.label)
  total, scales = jnp.float32(0), []
  sides = (student, banks.teacher), (teacher, banks.student)
  for (x, bank), known in zip(sides, banks.scale, strict=True):
    # Products with the whole bank take less memory than a copy of every candidate's embedding.
    cosine = jnp.take_along_axis(product("bd,nd->bn", x, bank), candidates, axis=1)
    score = jnp.exp(cosine / temperature)
    # A batch in which nothing counts has no mean.
    mean = jnp.mean(score, where=jnp.broadcast_to(where[:, None] | ~where.any(), score.shape))
    scale = jnp.where(known > 0, known, jax.lax.stop_gradient(mean) * examples)
    total = total + losses.noise_contrastive(score / scale, examples=examples, where=where)
    scales.append(scale)
  return total, jnp.stack(scales)


def draw_negatives(
  rng, label: Int[Array, "examples"], index: Int[Array, "batch"], number: int
) -> Int[Array, "batch number"]:
  """Indices of examples of other classes, uniformly and with replacement."""
  order = jnp.argsort(label)
  ordered, own = label[order], label[index]
  first = jnp.sum(label == ABSENT)  # these are in front
  start = jnp.searchsorted(ordered, own, side="left")[:, None]
  length = jnp.searchsorted(ordered, own, side="right")[:, None] - start
  place = first + jax.random.randint(rng, (len(index), number), 0, len(label) - first - length)
  place = jnp.where(place >= start, place + length, place)  # over those of the own class
  return order[jnp.minimum(place, len(label) - 1)].astype(jnp.int32)


def _places(batch, where, examples: int) -> Int[Array, "batch"]:
  """Where in a bank each row belongs; behind it for a row that does not count."""
  inside = where & (batch["index"] >= 0)
  return jnp.where(inside, batch["index"], examples)


def _moved(bank: Array, index: Array, new: Array, momentum: float) -> Array:
  total = jnp.zeros_like(bank).at[index].add(new, mode="drop")
  count = jnp.zeros(len(bank)).at[index].add(1.0, mode="drop")[:, None]
  mixed = momentum * bank + (1 - momentum) * total / jnp.maximum(count, 1)
  length = jnp.sqrt(jnp.sum(jnp.square(mixed), axis=-1, keepdims=True))
  return jnp.where(count > 0, mixed / jnp.maximum(length, 1e-12), bank)
