"""Standardised logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import hinton_kd, standardize_logits

from .checks import gradient_is_the_slope, jit, matches, random_logits, reference


def test_golden_value():
  # Mean 7/3; squared distances (16 + 1 + 25) / 9 over 2 make the variance 7/3.
  wanted = (np.array([1.0, 2.0, 4.0]) - 7 / 3) / np.sqrt(7 / 3)
  np.testing.assert_allclose(wanted, [-0.872872, -0.218218, 1.091089], atol=1e-6)
  np.testing.assert_allclose(standardize_logits(jnp.array([1.0, 2.0, 4.0])), wanted, rtol=1e-6)


def test_invariant_to_shift_and_positive_scale():
  z = random_logits(0, (5, 8))[0]
  scale, shift = np.float32([[0.1], [1], [3], [10], [50]]), np.float32([[9], [0], [-4], [1], [2]])
  np.testing.assert_allclose(
    standardize_logits(jnp.asarray(scale * z + shift)),
    standardize_logits(jnp.asarray(z)),
    rtol=1e-4,
    atol=1e-4,
  )


def test_axis_dtype_and_gradient():
  z = jnp.asarray(random_logits(1, (5, 8))[0])
  np.testing.assert_allclose(standardize_logits(z.T, axis=0), standardize_logits(z).T, atol=1e-6)
  assert standardize_logits(z.astype(jnp.bfloat16)).dtype == jnp.float32
  direction = jnp.asarray(random_logits(2, (5, 8))[0])
  gradient_is_the_slope(lambda x: jnp.sum(standardize_logits(x) * direction), z, direction)
  with pytest.raises(KdjaxError, match="axis is 2"):
    standardize_logits(z, axis=2)


def test_degenerate_rows():
  # Constant rows and single classes have no spread; excluded classes do not count.
  for z in (jnp.full((2, 3), 7.0), jnp.ones((2, 1))):
    np.testing.assert_array_equal(standardize_logits(z), 0.0)
    gradient = jit(jax.grad(lambda x: jnp.sum(jnp.square(standardize_logits(x)))))(z)
    assert np.isfinite(gradient).all()
  z = jnp.array([1.0, -jnp.inf, 2.0, 4.0])
  np.testing.assert_allclose(
    standardize_logits(z)[jnp.array([0, 2, 3])],
    standardize_logits(jnp.array([1.0, 2.0, 4.0])),
    rtol=1e-6,
  )
  assert standardize_logits(z)[1] == -jnp.inf
  slope = jit(jax.grad(lambda x: standardize_logits(x)[0]))(z)
  assert np.isfinite(slope).all() and slope[1] == 0.0


def test_official_code():
  stored = reference("logit_standardization")
  np.testing.assert_allclose(
    standardize_logits(jnp.asarray(stored["student"])), stored["normalized"], rtol=1e-5, atol=1e-6
  )
  teacher = standardize_logits(jnp.asarray(stored["teacher"]))
  matches(
    stored,
    {"kd_t2": lambda s: jnp.mean(hinton_kd(standardize_logits(s), teacher, temperature=2.0))},
    stored["student"],
  )
