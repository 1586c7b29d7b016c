"""How alike two representations of the same rows are, whatever their widths and rotations."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

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


def _gram(x: Float[Array, "rows width"]) -> Float[Array, "rows rows"]:
  x = x - jnp.mean(x, axis=0, keepdims=True)
  return x @ x.T


def _hsic_biased(k: Array, l: Array) -> Array:
  return jnp.sum(k * l)  # both centred; the common factor cancels


def _hsic_unbiased(k: Array, l: Array) -> Array:
  n = k.shape[0]
  off = 1.0 - jnp.eye(n, dtype=jnp.float32)
  k, l = k * off, l * off
  together = jnp.sum(k * l)
  apart = jnp.sum(k) * jnp.sum(l) / ((n - 1) * (n - 2))
  crossed = 2 * jnp.sum(jnp.sum(k, axis=0) * jnp.sum(l, axis=0)) / (n - 2)
  return (together + apart - crossed) / (n * (n - 3))
