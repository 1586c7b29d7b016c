"""Distillation by correlation of predictions, within rows and within columns of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["dist_relation"]


def dist_relation(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  *,
  beta: float | Float[Array, ""] = 1.0,
  gamma: float | Float[Array, ""] = 1.0,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""T² (beta inter + gamma intra): one minus the Pearson correlation, over rows and over columns.

  Inter: between the class probabilities of student and teacher for one example. Intra: between
  their probabilities of one class over all examples that count, averaged over the classes. Only
  relations are matched, so an affine map of a row or column costs nothing. A constant row or column
  counts as uncorrelated.

  The intra term belongs to the batch as a whole: every example carries the same value of it, and
  the mean over the examples that count is the loss of the paper. All axes but the class axis are
  examples. Give it a whole batch: over parts of one (micro-batches, chunks, `vmap`) it is another,
  noisier loss.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    beta: weight of the inter-class term. May be traced.
    gamma: weight of the intra-class term. May be traced.
    temperature: > 0, dimensionless; divides both sides and enters squared. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0 and are left out of the columns.

  Returns:
    float32[...], between 0 and 2 T² (beta + gamma).

  Raises:
    KdjaxError: if the shapes differ, temperature <= 0, or the teacher is a sparse signal.

  Example:
    >>> z = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> print(jnp.abs(dist_relation(z, z)).round(4))
    [0. 0.]

  Reference:
    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
    https://arxiv.org/abs/2205.10536
  """
  student, teacher, where = _common.align(
    "dist_relation", student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  batch, vocab = student.shape[:-1], student.shape[-1]
  q = jax.nn.softmax(student).reshape(-1, vocab)
  p = jax.nn.softmax(teacher).reshape(-1, vocab)
  rows = jnp.ones(q.shape, jnp.bool_)
  if where is not None:
    rows = jnp.broadcast_to(jnp.expand_dims(where.reshape(-1), -1), q.shape)
  inter = 1.0 - _pearson(q, p, jnp.ones_like(rows), axis=-1)
  intra = 1.0 - jnp.mean(_pearson(q, p, rows, axis=0))
  beta, gamma = jnp.asarray(beta, jnp.float32), jnp.asarray(gamma, jnp.float32)
  value = jnp.square(jnp.asarray(temperature, jnp.float32)) * (beta * inter + gamma * intra)
  return _common.masked(value.reshape(batch), where)


def _pearson(x: Array, y: Array, counted: Array, axis: int) -> Array:
  """Correlation along `axis` over the counted entries; 0 where one side is constant."""
  count = jnp.maximum(jnp.sum(counted, axis=axis, keepdims=True).astype(jnp.float32), 1.0)

  def centre(z: Array) -> Array:
    z = jnp.where(counted, z, 0.0)
    return jnp.where(counted, z - jnp.sum(z, axis=axis, keepdims=True) / count, 0.0)

  x, y = centre(x), centre(y)
  scale = _common.norm(x, axis) * _common.norm(y, axis)
  return jnp.sum(x * y, axis=axis) / (scale + 1e-8)
