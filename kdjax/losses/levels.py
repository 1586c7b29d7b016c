"""Predictions matched across a batch: between its examples, and between the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.resize import product
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["batch_correlation", "class_correlation"]


def batch_correlation(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""||P_S P_S^T - P_T P_T^T||^2 / B: how alike the predictions for two examples are.

  P holds the class probabilities of the examples in its rows. The value of an example is the sum
  over its row of the difference, and the mean over the examples that count is the published number.
  All axes but the class axis are examples. Give it a whole batch: over parts of one (micro-batches,
  chunks, `vmap`) it is another loss.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides and scales nothing else. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0 and are left out of the rows.

  Returns:
    float32[...], at least 0.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> z = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> print(batch_correlation(z, z))
    [0. 0.]

  Reference:
    Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023 (Jin-Ying/
    Multi-Level-Logit-Distillation, mdistiller/distillers/KD_ours.py, `bc_loss`)
  """
  q, p, where, counted = _probabilities(
    "batch_correlation", student_logits, teacher_logits, temperature, axis, where
  )
  difference = product("av,bv->ab", q, q) - product("av,bv->ab", p, p)
  # Rows that do not count are 0, and so are their products with the others.
  value = jnp.sum(jnp.square(difference), axis=-1).reshape(counted)
  return _common.masked(value, where)


def class_correlation(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""||P_S^T P_S - P_T^T P_T||^2 / V: which classes are likely together.

  P holds the class probabilities of the examples in its rows. The number belongs to the batch as a
  whole, and every example that counts carries it. It grows with the square of their number. All
  axes but the class axis are examples. Give it a whole batch: over parts of one (micro-batches,
  chunks, `vmap`) it is another, smaller loss.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    temperature: > 0, dimensionless; divides both sides and scales nothing else. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0 and are left out of the batch.

  Returns:
    float32[...], at least 0, the same for all examples.

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> z = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> print(class_correlation(z, z))
    [0. 0.]

  Reference:
    Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023 (Jin-Ying/
    Multi-Level-Logit-Distillation, mdistiller/distillers/KD_ours.py, `cc_loss`)
  """
  q, p, where, counted = _probabilities(
    "class_correlation", student_logits, teacher_logits, temperature, axis, where
  )
  difference = product("bu,bv->uv", q, q) - product("bu,bv->uv", p, p)
  value = jnp.sum(jnp.square(difference)) / q.shape[-1]
  return _common.masked(jnp.broadcast_to(value, counted), where)


def _probabilities(loss: str, student, teacher, temperature, axis: int, where):
  """Both sides as [examples, V] with 0 in rows that do not count, `where`, and its shape."""
  student, teacher, where = _common.align(
    loss, student, teacher, temperature=temperature, axis=axis, where=where
  )

  def rows(logits: Array) -> Array:
    p = jax.nn.softmax(logits)
    if where is not None:
      p = jnp.where(jnp.broadcast_to(jnp.expand_dims(where, -1), p.shape), p, 0.0)
    return p.reshape(-1, p.shape[-1])

  return rows(student), rows(teacher), where, student.shape[:-1]
