"""Several teachers: mixtures, means of logits, and losses against each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import combine_teachers, forward_kl, hinton_kd, over_teachers, reverse_kl

from .checks import jit, kl64, log_softmax64, random_logits

SHARES = np.array([0.2, 0.3, 0.5])


@functools.cache
def logits():
  rng = np.random.default_rng(0)
  student = (2 * rng.standard_normal((4, 6))).astype(np.float32)
  return student, (2 * rng.standard_normal((3, 4, 6))).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_float64_twin_of_both_rules(temperature):
  _, teachers = logits()
  combine = jit(
    lambda z: [
      combine_teachers(z, rule=rule, weights=(2, 3, 5), temperature=temperature)
      for rule in ("probabilities", "logits")
    ]
  )
  mixture, geometric = (np.exp(log_softmax64(z, temperature)) for z in combine(teachers))
  log_probs = log_softmax64(teachers, temperature)
  wanted = np.tensordot(SHARES, np.exp(log_probs), 1)
  np.testing.assert_allclose(mixture, wanted, rtol=1e-5)
  wanted = np.exp(np.tensordot(SHARES, log_probs, 1))
  np.testing.assert_allclose(geometric, wanted / wanted.sum(-1, keepdims=True), rtol=1e-5)


def test_forward_kl_to_the_mixture_has_the_gradient_of_the_mean_over_teachers():
  student, teachers = logits()
  loss = functools.partial(hinton_kd, temperature=2.0)

  def mixed(s):
    return loss(s, combine_teachers(teachers, weights=SHARES, temperature=2.0)).sum()

  def apart(s):
    return over_teachers(loss, weights=SHARES)(s, teachers).sum()

  both = jit(lambda s: (jax.value_and_grad(mixed)(s), jax.value_and_grad(apart)(s)))
  (value, gradient), (larger, wanted) = both(student)
  np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)
  # The values differ by how far the teachers are from their mixture.
  p = np.exp(log_softmax64(teachers, 2.0))
  spread = np.tensordot(SHARES, kl64(p, np.tensordot(SHARES, p, 1)), 1)
  np.testing.assert_allclose(larger - value, 4 * spread.sum(), rtol=1e-4)


def test_other_losses_tell_the_rules_apart():
  student, teachers = logits()
  both = jit(lambda s, t: (over_teachers(reverse_kl)(s, t), reverse_kl(s, combine_teachers(t))))
  apart, mixed = both(student, teachers)
  q = np.exp(log_softmax64(student))
  wanted = np.mean([kl64(q, np.exp(log_softmax64(z))) for z in teachers], axis=0)
  np.testing.assert_allclose(apart, wanted, rtol=1e-4)
  assert (apart > mixed + 1e-3).all()


def test_copies_of_one_teacher_are_that_teacher():
  student, teachers = logits()
  copies = np.repeat(teachers[:1], 3, axis=0)
  values = jit(
    lambda s, t: [
      forward_kl(s, combine_teachers(t)),
      forward_kl(s, combine_teachers(t, rule="logits")),
      over_teachers(forward_kl)(s, t),
    ]
  )(student, copies)
  for value in values:
    np.testing.assert_allclose(value, forward_kl(student, jnp.asarray(teachers[0])), rtol=1e-4)


def test_another_axis_excluded_classes_and_no_gradient():
  _, teachers = logits()
  teachers = teachers.copy()
  teachers[:, 0, 3] = teachers[0, 1, 2] = -np.inf
  columns = np.swapaxes(teachers, 1, 2)
  for rule in ("probabilities", "logits"):
    rows, other = jit(
      lambda a, b, rule=rule: [
        combine_teachers(a, rule=rule),
        combine_teachers(b, rule=rule, axis=0),
      ]
    )(teachers, columns)
    np.testing.assert_allclose(other, rows.T, rtol=1e-5)
    assert rows[0, 3] == -np.inf and not np.isnan(rows).any()
    assert (rows[1, 2] == -np.inf) == (rule == "logits")
  gradient = jit(jax.grad(lambda z: combine_teachers(z).sum()))(random_logits(0, (2, 5))[0])
  np.testing.assert_array_equal(gradient, 0.0)


def test_bad_arguments_are_refused():
  two = jnp.zeros((2, 3))
  with pytest.raises(KdjaxError, match="rule is 'mean'; it must be one of probabilities, logits"):
    combine_teachers(two, rule="mean")
  for weights in ((1,), (1, 0), (1, -1), (1, 1, 1)):
    with pytest.raises(KdjaxError, match="must be 2 positive numbers"):
      combine_teachers(two, weights=weights)
    with pytest.raises(KdjaxError, match="must be 2 positive numbers"):
      over_teachers(forward_kl, weights=weights)(jnp.zeros(3), two)
  with pytest.raises(KdjaxError, match=r"shape \(3,\)"):
    combine_teachers(jnp.zeros(3))
  with pytest.raises(KdjaxError, match="temperature is 0"):
    combine_teachers(two, temperature=0)
