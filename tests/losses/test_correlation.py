"""DIST: correlations over rows and columns."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import dist_relation

from .checks import log32, log_softmax64, matches, random_logits, reference


def test_golden_value():
  # Rows of two classes correlate by +1 or -1. Columns here: student (.9, .6, .3), teacher
  # (.2, .8, .6); centred (.3, 0, -.3) and (-1, 4/5, 1/5) / 3 up to scale: r = -.6 / sqrt(.84).
  student = log32([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
  teacher = log32([[0.2, 0.8], [0.8, 0.2], [0.6, 0.4]])
  column = np.corrcoef([0.9, 0.6, 0.3], [0.2, 0.8, 0.6])[0, 1]
  np.testing.assert_allclose(column, -0.4 / np.sqrt(2 * (1 + 4 + 1) / 9 * 0.28), rtol=1e-6)
  inter = np.array([2.0, 0.0, 2.0])
  value = dist_relation(student, teacher, beta=1.0, gamma=3.0)
  np.testing.assert_allclose(value, inter + 3 * (1 - column), rtol=1e-5)


def _twin(student, teacher, beta, gamma, temperature):
  q, p = (np.exp(log_softmax64(z, temperature)) for z in (student, teacher))
  inter = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
  intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
  return temperature**2 * (beta * np.array(inter) + gamma * intra)


def test_float64_twin_with_rows_left_out_of_the_columns():
  student, teacher = random_logits(0, (9, 5))
  where = np.arange(9) % 3 != 1
  value = dist_relation(
    jnp.asarray(student),
    jnp.asarray(teacher),
    beta=2.0,
    gamma=0.5,
    temperature=3.0,
    where=jnp.asarray(where),
  )
  wanted = _twin(student[where], teacher[where], 2.0, 0.5, 3.0)
  np.testing.assert_allclose(value[where], wanted, rtol=1e-4)
  np.testing.assert_array_equal(value[~where], 0.0)


def test_equal_relations_cost_nothing():
  teacher = jnp.asarray(random_logits(1, (6, 4))[0])
  np.testing.assert_allclose(dist_relation(teacher, teacher), 0.0, atol=1e-5)
  # Mixing every row with the uniform distribution is an affine map of rows and of columns.
  p = jnp.exp(teacher) / jnp.sum(jnp.exp(teacher), -1, keepdims=True)
  np.testing.assert_allclose(dist_relation(jnp.log(0.5 * p + 0.125), teacher), 0.0, atol=1e-5)


def test_all_axes_but_the_classes_are_examples():
  student, teacher = (jnp.asarray(z) for z in random_logits(2, (2, 3, 5)))
  flat = dist_relation(student.reshape(6, 5), teacher.reshape(6, 5))
  np.testing.assert_allclose(dist_relation(student, teacher), flat.reshape(2, 3), rtol=1e-6)


def test_official_code():
  stored = reference("dist_kd")
  teacher = stored["teacher"]
  wanted = {
    "dist": lambda s: jnp.mean(dist_relation(s, teacher)),
    "dist_2_3": lambda s: jnp.mean(dist_relation(s, teacher, beta=2.0, gamma=3.0)),
  }
  matches(stored, wanted, stored["student"])


def test_official_code_on_maps():
  # Maps [batch, class, height, width]: every pixel is an example.
  stored = reference("dist_kd")
  teacher = stored["map_teacher"]
  wanted = {"map_dist": lambda s: jnp.mean(dist_relation(s, teacher, gamma=2.0, axis=1))}
  matches(stored, wanted, stored["map_student"])


def test_with_temperature():
  stored = reference("nd_loss")
  teacher = stored["dist_teacher"]
  wanted = {"dist_tau4": lambda s: jnp.mean(dist_relation(s, teacher, gamma=2.0, temperature=4.0))}
  matches(stored, wanted, stored["dist_student"])
