"""Distances between distributions over two vocabularies that have nothing in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["sorted_distance", "sorted_probability_distance"]


def sorted_probability_distance(
  student_logits: Float[Array, "*batch student_vocab"],
  teacher_logits: Float[Array, "*batch teacher_vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Universal logit distillation (ULD): how far two vocabularies' sorted probabilities are apart.

  :math:`\sum_k |p_{(k)} - q_{(k)}|`, p the teacher's and q the student's probabilities, each sorted
  from the largest to the smallest, the shorter filled up with zeros. Between 0 and 2. The order of
  neither vocabulary matters, so it says nothing of which classes are likely, only of how sure each
  side is. Over one vocabulary it is at most twice `total_variation`.

  Args:
    student_logits: [..., V_student], unnormalised, any float dtype.
    teacher_logits: [..., V_teacher], the same rows; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], a distance, for each position.

  Raises:
    KdjaxError: if the rows differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.4, 0.6])
    >>> print(f"{sorted_probability_distance(jnp.log(student), jnp.log(teacher)):.4f}")
    0.4000

  Reference:
    Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for
    LLMs", TMLR 2025, https://arxiv.org/abs/2402.12030
    (Nicolas-BZRD/llm-recipes, models/distillation_model.py).
  """
  student, teacher, where = _common.align(
    "sorted_probability_distance",
    student_logits,
    teacher_logits,
    temperature=temperature,
    axis=axis,
    where=where,
    same_classes=False,
  )
  distance = sorted_distance(jax.nn.softmax(student), jax.nn.softmax(teacher))
  return _common.masked(distance, where)


def sorted_distance(
  a: Float[Array, "*batch classes"], b: Float[Array, "*batch others"]
) -> Float[Array, "*batch"]:
  """Sum of |a - b|, each sorted from the largest value on and the shorter filled up with zeros.

  Args:
    a: [..., V], such as probabilities, or some of them.
    b: [..., W], the same rows.

  Returns:
    [...], a distance for each row; both sides have a gradient.

  Raises:
    TypeError: rows that do not broadcast.

  Example:
    >>> print(sorted_distance(jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])))
    0.5
  """
  size = max(a.shape[-1], b.shape[-1])

  def ranked(x: Array) -> Array:
    pad = [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])]
    return jnp.pad(jnp.sort(x, axis=-1, descending=True), pad)

  return jnp.sum(jnp.abs(ranked(a) - ranked(b)), axis=-1)
