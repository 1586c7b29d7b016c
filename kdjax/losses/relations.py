"""Relations between the examples of a batch, in place of the features themselves.

Each compares matrices (or a cube) over pairs of examples, so that the widths of the two sides may
differ. It belongs to a whole batch: over parts of one (micro-batches, `vmap`) it is another loss.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from kdjax.losses import _common, _maps
from kdjax.losses.resize import product

__all__ = [
  "probabilistic_knowledge_transfer",
  "relational_angle",
  "relational_distance",
  "similarity_preserving",
]


def relational_distance(
  student_features: Float[Array, "batch *student"],
  teacher_features: Float[Array, "batch *teacher"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""Huber's loss between the distances of all pairs, each side's divided by their mean.

  The value of an example is the mean over its pairs with all others and itself; the mean over the
  examples is the published number. Turning, moving or scaling the features of a side costs nothing.

  Args:
    student_features: [B, ...], any float dtype.
    teacher_features: [B, ...], of any shape; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0 and are in no pair.

  Returns:
    float32[B], at least 0. The published weight is 25.

  Raises:
    KdjaxError: if the batches differ.

  Example:
    >>> student = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> print(relational_distance(student, -2.0 * student + 1.0).round(4))
    [0. 0. 0.]

  Reference:
    Park et al., "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068
  """
  student, teacher, where = _maps.align(
    "relational_distance", student_features, teacher_features, where
  )
  a, b = (_distances(_maps.rows(x), where) for x in (student, teacher))
  return _maps.mean_over_pairs(optax.losses.huber_loss(a, b), where)


def relational_angle(
  student_features: Float[Array, "batch *student"],
  teacher_features: Float[Array, "batch *teacher"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""Huber's loss between the cosines of the angles in all triangles of examples.

  The value of an example is the mean over the angles at it, those of triangles with equal corners
  being 0; the mean over the examples is the published number. Memory grows with B^3.

  Args:
    student_features: [B, ...], any float dtype.
    teacher_features: [B, ...], of any shape; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0 and are in no triangle.

  Returns:
    float32[B], between 0 and 1.5. The published weight is 50.

  Raises:
    KdjaxError: if the batches differ.

  Example:
    >>> student = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(relational_angle(student, -2.0 * student + 1.0).round(4))
    [0. 0. 0.]

  Reference:
    Park et al., "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068
  """
  student, teacher, where = _maps.align(
    "relational_angle", student_features, teacher_features, where
  )
  a, b = (_cosines(_maps.rows(x)) for x in (student, teacher))
  counted = jnp.broadcast_to(_maps.pairs(where)[None], a.shape)
  values = jnp.sum(jnp.where(counted, optax.losses.huber_loss(a, b), 0.0), axis=(1, 2))
  return _common.masked(values / jnp.square(_maps.number(where)), where)


def similarity_preserving(
  student_features: Float[Array, "batch *student"],
  teacher_features: Float[Array, "batch *teacher"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""The mean squared difference of the rows of F F^T, each row of length 1.

  The value of an example is the mean over its row; the mean over the examples is the published
  number. Turning or scaling all features of a side costs nothing.

  Args:
    student_features: [B, ...], any float dtype; maps are taken as one long vector.
    teacher_features: [B, ...], of any shape; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0 and are in no row.

  Returns:
    float32[B], between 0 and 4 / B. The published weight is 3000.

  Raises:
    KdjaxError: if the batches differ.

  Example:
    >>> print(similarity_preserving(jnp.eye(2), jnp.array([[1.0], [0.0]])))
    [0.  0.5]

  Reference:
    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
    https://arxiv.org/abs/1907.09682
  """
  student, teacher, where = _maps.align(
    "similarity_preserving", student_features, teacher_features, where
  )
  # Rows that do not count are 0, and so are their products: they add nothing to a row's length.
  a, b = (_maps.unit(_products(_maps.rows(x))) for x in (student, teacher))
  return _maps.mean_over_pairs(jnp.square(a - b), where)


def probabilistic_knowledge_transfer(
  student_features: Float[Array, "batch *student"],
  teacher_features: Float[Array, "batch *teacher"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""KL(teacher || student) of how likely each other example is as a neighbour, divided by B.

  The probabilities are rows of (cosine + 1) / 2 divided by their sum, the example itself included.
  The mean over the examples is the number of the common code, which takes the mean over all B^2
  entries; hence its large weight. An eps of 1e-7 keeps lengths and probabilities from 0.

  Args:
    student_features: [B, ...], any float dtype.
    teacher_features: [B, ...], of any shape; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0 and are nobody's neighbours.

  Returns:
    float32[B], at least 0 up to rounding. The published weight is 30000.

  Raises:
    KdjaxError: if the batches differ.

  Example:
    >>> student = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(jnp.abs(probabilistic_knowledge_transfer(student, 5.0 * student)).round(4))
    [0. 0.]

  Reference:
    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV
    2018, https://arxiv.org/abs/1803.10837
  """
  student, teacher, where = _maps.align(
    "probabilistic_knowledge_transfer", student_features, teacher_features, where
  )
  q, p = (_neighbours(_maps.rows(x), where) for x in (student, teacher))
  return _maps.mean_over_pairs(p * jnp.log((p + 1e-7) / (q + 1e-7)), where)


def _distances(x: Array, where: Array) -> Array:
  """Euclidean distances of the examples that count over their mean; 0 on the diagonal."""
  # Moved to their middle, where differences of large products lose less.
  middle = jnp.sum(x, axis=0, keepdims=True) / _maps.number(where)
  x = jnp.where(where[:, None], x - middle, 0.0)
  square = jnp.sum(jnp.square(x), axis=-1)
  square = square[:, None] + square[None, :] - 2 * _products(x)
  apart = _maps.pairs(where) & ~jnp.eye(len(x), dtype=bool)
  # As far apart as the official code puts equal examples, without its gradient of 1 / 0.
  far = apart & (square > 1e-12)
  distance = jnp.where(far, jnp.sqrt(jnp.where(far, square, 1.0)), jnp.where(apart, 1e-6, 0.0))
  mean = jnp.sum(distance) / jnp.maximum(jnp.sum(apart, dtype=jnp.float32), 1.0)
  return distance / jnp.where(mean > 0, mean, 1.0)


def _cosines(x: Array) -> Array:
  """[a, b, c]: of the angle at a between the directions to b and c."""
  direction = _maps.unit(x[None, :] - x[:, None])
  return product("abd,acd->abc", direction, direction)


def _products(x: Array) -> Array:
  return product("ad,bd->ab", x, x)


def _neighbours(x: Array, where: Array) -> Array:
  x = x / (_common.norm(x)[:, None] + 1e-7)
  similarity = jnp.where(_maps.pairs(where), (_products(x) + 1.0) / 2.0, 0.0)
  total = jnp.sum(similarity, axis=-1, keepdims=True)
  return similarity / jnp.where(total > 0, total, 1.0)
