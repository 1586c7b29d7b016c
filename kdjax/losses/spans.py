"""How the predictions of neighbouring tokens go together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["neighbour_correlation"]

Pair = tuple[Float[Array, "*batch vocab"], Float[Array, "*batch vocab"]]


def neighbour_correlation(
  student_pair: Pair,
  teacher_pair: Pair,
  *,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Squared distance between both sides' products of two tokens' probabilities.

  :math:`\sum_v (p_v p'_v - q_v q'_v)^2`, p and p' the teacher's probabilities at a token and at the
  next, q and q' the student's. Meant for tokens of one span, such as a noun phrase: the product is
  large where both tokens may be the same class. It is a small number, at most 2. The product is
  published; the square is reconstructed, since the paper has no public code.

  Args:
    student_pair: (logits [..., V] at a token, logits [..., V] at the next), any float dtype.
    teacher_pair: the same of the teacher; no gradient flows here.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False pairs return 0.

  Returns:
    float32[...], for each pair.

  Raises:
    KdjaxError: if the shapes differ.

  Example:
    >>> sure, even = jnp.array([100.0, 0.0]), jnp.zeros(2)
    >>> print(neighbour_correlation((sure, sure), (even, even)))  # (1 - 1/4)^2 + (1/4)^2
    0.625

  Reference:
    Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", 2024,
    https://arxiv.org/abs/2407.10068
  """
  loss = "neighbour_correlation"
  if len(student_pair) != 2 or len(teacher_pair) != 2:
    raise KdjaxError(f"{loss}: give each side's logits as a pair, (at a token, at the next)")
  rows = [
    _common.align(loss, student, teacher, temperature=1.0, axis=axis, where=where)
    for student, teacher in zip(student_pair, teacher_pair, strict=True)
  ]
  if rows[0].student.shape != rows[1].student.shape:
    shapes = [row.student.shape for row in rows]
    raise KdjaxError(f"{loss}: logits of neighbours have shapes {shapes}; they must be equal")
  student, teacher = (
    jax.nn.softmax(getattr(rows[0], side)) * jax.nn.softmax(getattr(rows[1], side))
    for side in ("student", "teacher")
  )
  return _common.masked(jnp.sum(jnp.square(teacher - student), axis=-1), rows[0].where)
