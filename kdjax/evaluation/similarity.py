"""How alike two representations of the same rows are, whatever their widths and rotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError


def linear_cka(
  student: Float[Array, "rows width"],
  teacher: Float[Array, "rows other_width"],
  *,
  debiased: bool = True,
) -> Float[Array, ""]:
  """Centred kernel alignment with linear kernels.

  HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L the Gram matrices of the two sides. It is 1 for
  representations that differ by rotation, scale and shift alone. The plain (biased) form exceeds 0
  for unrelated ones when widths are not small beside the number of rows; the debiased form has
  expectation near 0 there and may be slightly negative.

  Args:
    student: [N, D], any float dtype.
    teacher: [N, E], the same rows in the same order.
    debiased: uses the unbiased estimate of HSIC; needs N >= 4. Static.

  Returns:
    float32, at most 1; 0 where a side is constant.

  Raises:
    KdjaxError: differing or too few rows.

  Example:
    >>> x = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [4.0, 1.0]])
    >>> print(f"{linear_cka(x, 5 * x[:, ::-1] + 1):.4f}")
    1.0000

  Reference:
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
    https://arxiv.org/abs/1905.00414; the unbiased estimate: Song et al., "Feature Selection via
    Dependence Maximization", JMLR 2012.
  """
  rows, least = student.shape[0], 4 if debiased else 2
  if student.ndim != 2 or teacher.ndim != 2 or rows != teacher.shape[0] or rows < least:
    raise KdjaxError(
      f"linear_cka: student has shape {student.shape}, teacher {teacher.shape}; two matrices of"
      f" equally many rows are wanted, at least {least}"
    )
  hsic = _hsic_unbiased if debiased else _hsic_biased
  # Centring first costs nothing in exactness and keeps a large common mean out of the products.
  k, l = (_gram(x.astype(jnp.float32)) for x in (student, teacher))
  norm = jnp.sqrt(hsic(k, k)) * jnp.sqrt(hsic(l, l))
  return jnp.where(norm > 0, hsic(k, l) / jnp.where(norm > 0, norm, 1.0), 0.0)


PARTS = ("cka/across", "cka/student", "cka/teacher")


def batch_cka(
  student: Float[Array, "rows width"],
  teacher: Float[Array, "rows other_width"],
  where: Bool[Array, "rows"],
) -> dict[str, tuple[Array, Array]]:
  """What batches add to the kernel alignment of all of them: three unbiased estimates of HSIC.

  `joined_cka` makes one figure of their sums, which is that of minibatches and not of one large
  Gram matrix: with few rows in a batch it is noisier, not biased.

  Args:
    student: [N, D], any float dtype.
    teacher: [N, E].
    where: [N], True = counted; a batch in which fewer than 4 count adds nothing.

  Returns:
    (sum, count) of the names in `PARTS`.

  Reference:
    Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021,
    https://arxiv.org/abs/2010.15327, equations 2 and 3.
  """
  number = where.sum(dtype=jnp.float32)
  enough = number >= 4
  both = (where[:, None] & where[None, :]) & ~jnp.eye(len(where), dtype=bool)

  def gram(x: Array) -> Array:
    x = jnp.where(where[:, None], x.astype(jnp.float32), 0.0)
    x = x - x.sum(0, keepdims=True) / jnp.maximum(number, 1)  # keeps a common mean out of products
    return jnp.where(both, x @ x.T, 0.0)

  k, l = gram(student), gram(teacher)

  def pair(a: Array, b: Array) -> tuple[Array, Array]:
    value = _hsic_sums(a, b, jnp.where(enough, number, 4.0))
    return jnp.where(enough, value, 0.0), enough.astype(jnp.float32)

  return dict(zip(PARTS, (pair(k, l), pair(k, k), pair(l, l)), strict=True))


def joined_cka(values: Mapping[str, Any]) -> float:
  """The alignment of means of what `batch_cka` gives; 0 where a side is constant."""
  across, student, teacher = (float(values[name]) for name in PARTS)
  norm = np.sqrt(max(student, 0.0)) * np.sqrt(max(teacher, 0.0))
  return float(across / norm) if norm > 0 else 0.0


def _gram(x: Float[Array, "rows width"]) -> Float[Array, "rows rows"]:
  x = x - jnp.mean(x, axis=0, keepdims=True)
  return x @ x.T


def _hsic_biased(k: Array, l: Array) -> Array:
  return jnp.sum(k * l)  # both centred; the common factor cancels


def _hsic_unbiased(k: Array, l: Array) -> Array:
  n = k.shape[0]
  off = 1.0 - jnp.eye(n, dtype=jnp.float32)
  return _hsic_sums(k * off, l * off, n)


def _hsic_sums(k: Array, l: Array, n: Array | int) -> Array:
  """The unbiased estimate from Gram matrices of n rows without their diagonals."""
  together = jnp.sum(k * l)
  apart = jnp.sum(k) * jnp.sum(l) / ((n - 1) * (n - 2))
  crossed = 2 * jnp.sum(jnp.sum(k, axis=0) * jnp.sum(l, axis=0)) / (n - 2)
  return (together + apart - crossed) / (n * (n - 3))
