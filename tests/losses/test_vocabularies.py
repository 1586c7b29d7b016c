"""Distances between two vocabularies: worked numbers, invariances, the official code's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import sorted_probability_distance, total_variation

from .checks import P, Q, log32, log_softmax64, random_logits


def test_golden_values():
  # Sorted: .7 .2 .1 and .6 .3 .1.
  np.testing.assert_allclose(sorted_probability_distance(log32(Q), log32(P)), 0.2, rtol=1e-5)
  # Sure against three equal chances: 2/3 + 1/3 + 1/3.
  sure = sorted_probability_distance(jnp.array([50.0]), jnp.zeros(3))
  np.testing.assert_allclose(sure, 4 / 3, rtol=1e-6)


def test_float64_twin_and_either_side_longer():
  student, teacher = random_logits(0, (50, 9), 3.0)
  for a, b in ((student, teacher[:, :4]), (student[:, :4], teacher)):
    p, q = (np.sort(np.exp(log_softmax64(z)))[:, ::-1] for z in (b, a))
    size = max(p.shape[1], q.shape[1])
    p, q = (np.pad(z, [(0, 0), (0, size - z.shape[1])]) for z in (p, q))
    value = sorted_probability_distance(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(value, np.abs(p - q).sum(-1), rtol=1e-5, atol=1e-6)
    assert (value >= 0).all() and (value <= 2).all()


def test_the_order_of_either_vocabulary_is_nothing_to_it():
  student, teacher = (jnp.asarray(x) for x in random_logits(1, (20, 7)))
  value = sorted_probability_distance(student, teacher)
  order = np.random.default_rng(2).permutation(7)
  again = sorted_probability_distance(student, teacher[:, order])
  np.testing.assert_allclose(again, value, rtol=1e-6)
  assert (value <= 2 * total_variation(student, teacher) + 1e-6).all()
  np.testing.assert_allclose(sorted_probability_distance(teacher[:, order], teacher), 0, atol=1e-6)


@pytest.mark.parametrize("classes", [4, 6])
def test_dense_signals_stand_for_their_logits(classes):
  student, teacher = (jnp.asarray(x) for x in random_logits(3, (5, 6)))
  teacher = teacher[:, :classes]
  wanted = sorted_probability_distance(student, teacher)
  head = losses.HiddenHead(teacher, jnp.eye(classes), None)
  for signal in (losses.Dense(teacher), head):
    np.testing.assert_allclose(sorted_probability_distance(student, signal), wanted, rtol=1e-6)
