"""Products of neighbouring tokens' probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import neighbour_correlation

from .checks import P, Q, gradient_is_the_slope, jit, log32, log_softmax64, random_logits


def test_golden_value():
  # p p' = (.49, .04, .01), q q' = (.07, .06, .06): differences .42, -.02, -.05.
  value = neighbour_correlation((log32(Q), log32(P)), (log32(P), log32(P)))
  np.testing.assert_allclose(value, 0.42**2 + 0.02**2 + 0.05**2, rtol=1e-5)


def test_float64_twin_on_another_axis_with_pairs_that_do_not_count():
  logits = random_logits(0, (2, 4, 6))
  q, p = (np.exp(log_softmax64(z)) for z in logits)
  wanted = np.square(p[0] * p[1] - q[0] * q[1]).sum(-1)
  pairs = [tuple(jnp.asarray(one.T) for one in z) for z in logits]
  where = jnp.array([True, False, True, True])
  pairs[0] = (pairs[0][0].at[:, 1].set(jnp.nan), pairs[0][1])

  def total(pair):
    values = neighbour_correlation(pair, pairs[1], axis=0, where=where)
    return jnp.sum(values), values

  gradient, got = jit(jax.grad(total, has_aux=True))(pairs[0])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, np.where(where, wanted, 0), rtol=1e-5, atol=1e-7)
  for side in gradient:
    np.testing.assert_array_equal(side[:, 1], 0.0)
    assert np.abs(np.delete(side, 1, 1)).max() > 1e-4


def test_gradient_reaches_the_student_alone_and_is_its_slope():
  student, teacher = (jnp.asarray(z) for z in random_logits(1, (2, 3, 5)))

  def total(student, teacher):
    return jnp.sum(neighbour_correlation(tuple(student), tuple(teacher)))

  direction = np.cos(np.arange(30, dtype=np.float32)).reshape(2, 3, 5)
  gradient_is_the_slope(lambda s: total(s, teacher), student, direction)
  value, by_teacher = jit(jax.value_and_grad(total, 1))(teacher, teacher)
  np.testing.assert_array_equal(by_teacher, 0.0)
  np.testing.assert_array_equal(value, 0.0)


def test_other_shapes_are_refused():
  row = jnp.zeros((3, 4))
  with pytest.raises(KdjaxError, match=r"\(3, 4\).*\(2, 4\)"):
    neighbour_correlation((row, row), (row, row[:2]))
  with pytest.raises(KdjaxError, match="neighbours have shapes"):
    neighbour_correlation((row, row[:2]), (row, row[:2]))
  with pytest.raises(KdjaxError, match="as a pair"):
    neighbour_correlation((row,), (row, row))
