"""Decoupled knowledge distillation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import decoupled_kd, forward_kl

from .checks import P, Q, jit, kl64, log32, matches, random_logits, reference


def test_golden_parts():
  # Label 0: (.7, .3) against (.1, .9), and (2/3, 1/3) against (1/3, 2/3).
  target, others = kl64([0.7, 0.3], [0.1, 0.9]), kl64([2 / 3, 1 / 3], [1 / 3, 2 / 3])
  np.testing.assert_allclose([target, others], [1.032553, 0.231049], atol=1e-6)
  for alpha, beta, wanted in ((1.0, 0.0, target), (0.0, 1.0, others), (0.0, 0.0, 0.0)):
    value = decoupled_kd(log32(Q), log32(P), jnp.array(0), alpha=alpha, beta=beta, temperature=1.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)


_parts = jit(
  lambda s, t, y, alpha, beta: decoupled_kd(s, t, y, alpha=alpha, beta=beta, temperature=2.0)
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_weights_that_give_back_the_forward_kl(seed):
  student, teacher = random_logits(seed, (4, 6))
  labels = np.random.default_rng(seed).integers(0, 6, 4).astype(np.int32)
  p_label = np.asarray(jax.nn.softmax(teacher / 2))[np.arange(4), labels]
  whole = _parts(student, teacher, labels, 1.0, 0.0)
  whole += (1 - p_label) * _parts(student, teacher, labels, 0.0, 1.0)
  wanted = 4 * forward_kl(jnp.asarray(student), jnp.asarray(teacher), temperature=2.0)
  np.testing.assert_allclose(whole, wanted, rtol=1e-4, atol=1e-5)


def test_a_teacher_sure_of_the_label_still_teaches_the_rest():
  # 1 - p_y is e^-40, lost in float32, yet the part on the other classes keeps its full size.
  teacher, student = jnp.array([40.0, 1.0, 0.0]), jnp.array([40.0, 0.0, 1.0])
  p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
  value = decoupled_kd(student, teacher, jnp.array(0), alpha=0.0, beta=1.0, temperature=1.0)
  np.testing.assert_allclose(value, kl64(p, p[::-1]), rtol=1e-5)


def test_mdistiller():
  stored = reference("mdistiller")
  labels = jnp.asarray(stored["labels"], jnp.int32)

  def mean(**options):
    return lambda s: jnp.mean(decoupled_kd(s, stored["teacher"], labels, **options))

  wanted = {"dkd_default": mean(), "dkd_other": mean(alpha=0.5, beta=2.0, temperature=1.0)}
  matches(stored, wanted, stored["student"])
