"""The norm-and-direction loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import norm_direction

from .checks import CLOSE, jit, matches, reference

MEANS = jnp.array([[3.0, 0.0], [0.0, 0.5]])


def _one(student, teacher, label=0, **options):
  return norm_direction(
    jnp.asarray(student), jnp.asarray(teacher), MEANS, jnp.array(label), **options
  )


def test_golden_values():
  # Student (3, 4), |s| = 5, direction (1, 0): 1 - 3 / max(5, |t|).
  np.testing.assert_allclose(_one([3.0, 4.0], [0.0, 1.0]), 1 - 3 / 5, rtol=1e-6)
  np.testing.assert_allclose(_one([3.0, 4.0], [6.0, 8.0]), 1 - 3 / 10, rtol=1e-6)
  np.testing.assert_allclose(_one([3.0, 4.0], [6.0, 8.0], 1), 1 - 4 / 10, rtol=1e-6)
  np.testing.assert_allclose(_one([1.0, 0.0], [0.0, 2.0]), 0.5, rtol=1e-6)  # half the norm
  np.testing.assert_allclose(_one([0.0, 0.0], [0.0, 2.0]), 1.0)
  np.testing.assert_allclose(_one([-4.0, 0.0], [0.0, 2.0]), 2.0, rtol=1e-6)


def test_gradient_of_short_and_long_features():
  slope = jax.grad(_one)
  # Shorter than the teacher: straight along the direction, -e / |t|.
  np.testing.assert_allclose(slope(jnp.array([0.3, 0.4]), [0.0, 2.0]), [-0.5, 0.0], atol=1e-6)
  np.testing.assert_allclose(slope(jnp.array([0.0, 0.0]), [0.0, 2.0]), [-0.5, 0.0], atol=1e-6)
  # As long or longer: only turned. At the tie the official code takes the student's norm, too.
  for student in ([3.0, 4.0], [1.2, 1.6]):
    gradient = slope(jnp.array(student), [0.0, 2.0])
    assert np.abs(gradient).max() > 0.05
    np.testing.assert_allclose(np.dot(gradient, student), 0.0, atol=1e-6)


def test_neither_teacher_nor_means_get_a_gradient():
  rng = np.random.default_rng(0)
  student, teacher, means = (jnp.float32(rng.normal(size=(4, 3))) for _ in range(3))
  labels = jnp.array([0, 1, 2, 3])
  gradients = jax.grad(lambda t, m: jnp.sum(norm_direction(student, t, m, labels)), argnums=(0, 1))(
    teacher, means
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0.0)


def test_rows_that_do_not_count_leave_no_trace():
  student = jnp.array([[3.0, 4.0], [jnp.nan, 1.0], [1.0, jnp.inf]])
  teacher = jnp.array([[0.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0]])
  labels, where = jnp.array([0, -1, 9]), jnp.array([True, False, False])

  def total(s):
    values = norm_direction(s, teacher, MEANS, labels, where=where)
    return jnp.sum(values), values

  gradient, values = jit(jax.grad(total, has_aux=True))(student)
  np.testing.assert_allclose(values, [0.4, 0.0, 0.0], rtol=1e-6)
  np.testing.assert_array_equal(gradient[1:], 0.0)
  assert np.isfinite(gradient).all()
  out_of_range = norm_direction(student[:1], teacher[:1], MEANS, labels[2:])
  assert np.isnan(out_of_range).all()


def test_zero_norms_stay_finite():
  value, gradient = jax.value_and_grad(_one)(jnp.zeros(2), [0.0, 0.0])
  np.testing.assert_allclose(value, 1.0)
  assert np.isfinite(gradient).all()
  none = norm_direction(jnp.ones(2), jnp.ones(2), jnp.zeros((1, 2)), jnp.array(0))
  np.testing.assert_allclose(none, 1.0)  # a mean without direction


def test_axis_and_dtype():
  stored = reference("nd_loss")
  student, teacher, means, labels = (
    jnp.asarray(stored[k]) for k in ("student", "teacher", "class_means", "labels")
  )
  labels = labels.astype(jnp.int32)
  wanted = norm_direction(student, teacher, means, labels)
  np.testing.assert_allclose(
    norm_direction(student.T, teacher.T, means, labels, axis=0), wanted, **CLOSE
  )
  half = [x.astype(jnp.bfloat16) for x in (student, teacher, means)]
  values = norm_direction(*half, labels)
  assert values.dtype == jnp.float32
  full = norm_direction(*(x.astype(jnp.float32) for x in half), labels)
  np.testing.assert_array_equal(values, full)


def test_official_code():
  stored = reference("nd_loss")
  labels = jnp.asarray(stored["labels"], jnp.int32)
  teacher, means = stored["teacher"], stored["class_means"]
  wanted = {"nd": lambda s: jnp.mean(norm_direction(s, teacher, means, labels))}
  matches(stored, wanted, stored["student"])


def test_shapes_that_do_not_fit_are_named():
  two, three, labels = jnp.ones((5, 2)), jnp.ones((5, 3)), jnp.zeros(5, jnp.int32)
  with pytest.raises(KdjaxError, match=r"student_features.*\(5, 2\).*teacher_features.*\(5, 3\)"):
    norm_direction(two, three, MEANS, labels)
  with pytest.raises(KdjaxError, match=r"class_means has shape \(2, 2\).*\(5, 3\)"):
    norm_direction(three, three, MEANS, labels)
  with pytest.raises(KdjaxError, match=r"labels have shape \(4,\)"):
    norm_direction(two, two, MEANS, labels[:4])
