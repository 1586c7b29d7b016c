"""MiniLM: match self-attention relations of one layer; widths and depths are free."""

from __future__ import annotations

from collections.abc import Sequence

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid
from kdjax.objectives.combinators import combine, on_layers

FIELDS = {"q": "queries", "k": "keys", "v": "values"}


def minilm(
  *,
  relations: Sequence[str] = ("qk", "vv"),
  relation_heads: int | None = None,
  student_layer: int = -1,
  teacher_layer: int = -1,
  causal: bool = False,
) -> Objective:
  """The sum of KL(teacher || student) over attention relations, softmax(x yT / sqrt(width)).

  Args:
    relations: pairs of q, k and v: ("qk", "vv") is MiniLM's attention and value transfer,
      ("qq", "kk", "vv") is MiniLMv2's.
    relation_heads: heads are joined and split again into this many, which lets the models differ in
      heads; None keeps them as they are.
    student_layer: index; negative from the last.
    teacher_layer: index; negative from the last.
    causal: for decoders: a position sees itself and earlier ones.

  Returns:
    An objective with one term per relation.

  Raises:
    KdjaxError: an unknown relation; when shapes are known, heads that do not fit.

  Reference:
    Wang et al., "MiniLM", NeurIPS 2020, https://arxiv.org/abs/2002.10957; Wang et al., "MiniLMv2",
    2021, https://arxiv.org/abs/2012.15828 (bloomberg/minilmv2.bb, minilmv2/minilmv2.py).
  """
  for relation in relations:
    if len(relation) != 2 or not set(relation) <= set(FIELDS):
      raise KdjaxError(f"minilm: relation {relation!r} must be two letters of q, k, v, as in 'qk'")
  if not relations:
    raise KdjaxError("minilm: relations is empty; give at least one, such as 'vv'")
  terms = {
    relation: (1.0, _relation(FIELDS[relation[0]], FIELDS[relation[1]], relation_heads, causal))
    for relation in relations
  }
  return on_layers(combine(terms), [(student_layer, teacher_layer)])


def _relation(x: str, y: str, relation_heads: int | None, causal: bool) -> Objective:
  def apply(variables, student, teacher, batch, *, step, rng):
    pair = () if x == y else (getattr(student, y), getattr(teacher, y))
    values = losses.attention_relation(
      getattr(student, x),
      getattr(teacher, x),
      *pair,
      relation_heads=relation_heads,
      causal=causal,
      mask=batch.get("attention_mask"),
      segments=batch.get("segment_ids"),
    )
    return ObjectiveResult({"": Term(values, _sequences(batch, values))})

  fields = frozenset({x, y})
  return Objective(apply=apply, taps=Taps(fields, fields))


def _sequences(batch, values):
  """A sequence counts when any of its tokens does."""
  mask = batch.get("mask")
  if mask is not None and mask.ndim > 1:
    return mask.any(axis=tuple(range(1, mask.ndim)))
  return valid(batch, values)
