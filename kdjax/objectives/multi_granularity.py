"""Multi-granularity revision: a forward KL that learns where to look, and relations in spans."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import (
  Batch,
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Term,
  masked_sum,
  valid,
)
from kdjax.objectives.chunks import chunked_sum
from kdjax.objectives.networks import Params, apply_mlp, init_mlp
from kdjax.objectives.tokens import logit_taps, map_logits
from kdjax.outputs import Outputs

# The window that the network starts from: [0, 0.95] but for a thousandth of the mass.
_WIDTH, _START = 0.95, 0.02


def multi_granularity(
  *,
  kd_weight: float = 1.0,
  span_weight: float = 1.0,
  ce_weight: float = 1.0,
  top_k: int = 64,
  hidden: int = 256,
  least_mass: float = 0.5,
  softness: float = 0.02,
  word_pieces: tuple[Sequence[bool], Sequence[bool]] | None = None,
  chunk_size: int | None = None,
) -> Objective:
  """Labels + forward KL clipped to a window that a small network chooses + relations in spans.

  At each position the network reads the teacher's `top_k` largest probabilities and the student's
  of the same classes, and says between which quantiles of the teacher's mass the two are compared
  (`kdjax.losses.clipped_forward_kl`, "DAC-KL"). Where two neighbouring tokens belong to one span,
  the products of their probabilities are compared too (`kdjax.losses.neighbour_correlation`).

  Published are the three terms with weights 1, that a network predicts both limits, and the
  products. Reconstructed are the network's inputs and sizes, the window's soft edges and the
  distance between products. `least_mass` is ours: a narrower window never costs more, so that the
  network, trained by the loss that it clips, closes it down to this floor and chooses only where
  that lies. Look at the metrics `window/lower` and `window/upper`.

  Args:
    kd_weight: of the clipped divergence.
    span_weight: of the spans' term; 0 leaves it out, and batches then need no spans.
    ce_weight: of the labels' cross-entropy.
    top_k: probabilities of each side that the network reads; at most those that there are.
    hidden: width of its hidden layer.
    least_mass: in (0, 1]; no window is narrower than this share of the teacher's mass; 1 leaves
      the network nothing to choose.
    softness: of the window's edges, in mass.
    word_pieces: (begins, ends) by token, see `kdjax.data.text.words`; spans are then the words, in
      rows of data and in written ones. The paper takes noun, verb and prepositional phrases from an
      external chunker. From a config they are those of config.data.
    chunk_size: see `token_level`; with spans the head is then read three times.

  Returns:
    An objective with the network as `params`. Batches may have `spans` [B, T], which number the
    spans of the labels' tokens, 0 for none, and another number wherever a new span begins; else
    spans are words. Only positions with a label count. In batches that say which rows are `written`
    [B], only the others, the reference texts, teach by their labels.

  Raises:
    KdjaxError: a value out of range; when traced, no spans, a stored signal, or rows that are
      written or not without saying so.

  Reference:
    Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", 2024,
    https://arxiv.org/abs/2407.10068
  """
  if not 0 < least_mass <= 1:
    raise KdjaxError(f"multi_granularity: least_mass = {least_mass} must lie in (0, 1]")
  for name, value in (("top_k", top_k), ("hidden", hidden)):
    if value < 1:
      raise KdjaxError(f"multi_granularity: {name} = {value} must be at least 1")

  def init(rng, student, teacher, batch):
    classes = student.logits.shape[-1] if chunk_size is None else student.head.num_classes
    read = min(top_k, classes)
    params = init_mlp(rng, (2 * read, hidden, 2))
    # Every position starts from the same window.
    kernel = jnp.zeros_like(params["layer1"]["kernel"])
    params["layer1"] = {"kernel": kernel, "bias": _start_bias(least_mass)}
    return ObjectiveVars(params)

  def apply(variables, student, teacher, batch, *, step, rng):
    if teacher.signal is not None:
      raise KdjaxError(
        f"multi_granularity: the teacher hands over a stored signal ({teacher.signal.support}); use"
        " a live teacher, of which every class and its neighbours can be read"
      )

    mixed = bool(ce_weight) and _says_who_wrote(batch)

    def loss(student_logits, teacher_logits, labels, *, where):
      features = _features(student_logits, teacher_logits, where, top_k)
      lower, upper = window(variables.params, features, least_mass=least_mass)
      kd = losses.clipped_forward_kl(
        student_logits,
        teacher_logits,
        labels,
        lower=lower,
        upper=upper,
        softness=softness,
        where=where,
      )
      parts = {"loss/kd": kd, "window/lower": lower, "window/upper": upper}
      if mixed or not ce_weight:
        return kd_weight * kd, parts
      ce = losses.cross_entropy(student_logits, labels, where=where)
      return kd_weight * kd + ce_weight * ce, {"loss/ce": ce} | parts

    term, parts = map_logits(loss, student, teacher, batch, chunk_size=chunk_size, labels=True)
    terms = {"tokens": term}
    if mixed:
      reference = {**batch, "mask": valid(batch, batch["label"]) & ~batch["written"][:, None]}
      labels, _ = map_logits(
        losses.cross_entropy, student, None, reference, chunk_size=chunk_size, labels=True
      )
      terms["ce"] = labels._replace(weight=ce_weight)
    if span_weight:
      where = _pairs(batch, word_pieces)
      terms["spans"] = _spans(student, teacher, where, chunk_size)._replace(weight=span_weight)
    return ObjectiveResult(terms, {name: masked_sum(*part[:2]) for name, part in parts.items()})

  return Objective(apply=apply, taps=logit_taps(chunk_size), init=init)


def window(
  params: Params, features: Float[Array, "*batch width"], *, least_mass: float
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """(lower, upper) ends in [0, 1], at least `least_mass` apart.

  One output says how wide the window is, the other where in the rest it begins: both ends move
  freely between their bounds, and a narrow window still has a gradient.
  """
  width, start = jnp.moveaxis(jax.nn.sigmoid(apply_mlp(params, features)), -1, 0)
  width = least_mass + (1 - least_mass) * width
  lower = (1 - width) * start
  return lower, lower + width


def _start_bias(least_mass: float) -> Float[Array, "2"]:
  share = (_WIDTH - least_mass) / (1 - least_mass) if least_mass < _WIDTH else 0.5
  return jax.scipy.special.logit(jnp.array([share, _START], jnp.float32))


def _features(student_logits, teacher_logits, where, top_k: int) -> Float[Array, "*batch width"]:
  """The teacher's largest probabilities, then the student's of the same classes; no gradient."""
  q, p = (
    jax.nn.softmax(jnp.where(where[..., None], x.astype(jnp.float32), 0.0))
    for x in jax.lax.stop_gradient((student_logits, teacher_logits))
  )
  largest, ids = jax.lax.top_k(p, min(top_k, p.shape[-1]))
  return jnp.concatenate([largest, jnp.take_along_axis(q, ids, axis=-1)], axis=-1)


def _says_who_wrote(batch: Batch) -> bool:
  """Whether the batch says which rows are the student's own; none are where nobody writes."""
  if "written" not in batch and "sample_log_probs" in batch:
    raise KdjaxError(
      "multi_granularity: the labels of these rows may be the student's own tokens, and nothing"
      " says which are; set config.program.keep_data = True, or config.objective.ce_weight = 0"
    )
  return "written" in batch


def _spans(
  student: Outputs, teacher: Outputs, where: Bool[Array, "batch pairs"], chunk_size: int | None
) -> Term:
  """The mean over neighbours of one span."""
  inputs, readers = [], []
  for side, outputs in (("the student", student), ("the teacher", teacher)):
    tap = "logits" if chunk_size is None else "hidden"
    rows = outputs.require(tap, side)
    inputs.append((rows[:, :-1], rows[:, 1:]))
    head = None if chunk_size is None else outputs.require("head", side)
    readers.append((lambda x: x) if head is None else head.logits)

  def loss(student, teacher, where):
    pairs = [tuple(map(read, pair)) for read, pair in zip(readers, (student, teacher), strict=True)]
    return losses.neighbour_correlation(*pairs, where=where), {}

  if chunk_size is None:
    return Term(loss(*inputs, where)[0], where)
  total, _ = chunked_sum(loss, *inputs, where, where, chunk_size)
  count = where.sum(dtype=jnp.float32)
  return Term(total / jnp.maximum(count, 1.0), count)


def _pairs(
  batch: Batch, word_pieces: tuple[Sequence[bool], Sequence[bool]] | None
) -> Bool[Array, "batch pairs"]:
  """Where a token and the next have labels to be learnt and belong to the same span, [B, T - 1]."""
  label = batch["label"]
  learnt = (label >= 0) & valid(batch, label)
  both = learnt[:, :-1] & learnt[:, 1:]
  if "spans" not in batch and word_pieces is None:
    raise KdjaxError(
      "multi_granularity: the batch has no `spans`, int [B, T]; bring the spans of its text, or"
      " word_pieces, or set config.objective.span_weight = 0"
    )
  if "spans" not in batch:
    begins, ends = (
      jnp.asarray(part, bool).at[label].get(mode="fill", fill_value=False) for part in word_pieces
    )
    segments = batch.get("segment_ids", jnp.zeros_like(label))
    return both & ends[:, :-1] & begins[:, 1:] & (segments[:, :-1] == segments[:, 1:])
  spans = batch["spans"]
  if label.ndim != 2 or spans.shape != label.shape:
    raise KdjaxError(
      f"multi_granularity: spans have shape {spans.shape} and labels {label.shape}; both [B, T]"
      " wanted"
    )
  return both & (spans[:, :-1] > 0) & (spans[:, :-1] == spans[:, 1:])
