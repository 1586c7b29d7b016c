"""Forward KL, reverse KL and Hinton's distillation term."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import forward_kl, hinton_kd, reverse_kl

from .checks import (
  CLOSE,
  P,
  Q,
  jit,
  kl64,
  log32,
  log_softmax64,
  matches,
  mean_over,
  random_logits,
  reference,
)


def test_golden_values():
  # .7 ln 7 + .2 ln(2/3) + .1 ln(1/6) and .1 ln(1/7) + .3 ln(3/2) + .6 ln 6.
  forward = 0.7 * np.log(7) + 0.2 * np.log(2 / 3) + 0.1 * np.log(1 / 6)
  reverse = 0.1 * np.log(1 / 7) + 0.3 * np.log(3 / 2) + 0.6 * np.log(6)
  np.testing.assert_allclose([forward, reverse], [1.101868, 1.002104], atol=1e-6)
  np.testing.assert_allclose(forward_kl(log32(Q), log32(P)), forward, rtol=1e-6)
  np.testing.assert_allclose(reverse_kl(log32(Q), log32(P)), reverse, rtol=1e-6)
  # At T = 2 with logits log p the softened p is sqrt(p) / sum sqrt(p).
  p, q = np.sqrt(P) / np.sqrt(P).sum(), np.sqrt(Q) / np.sqrt(Q).sum()
  np.testing.assert_allclose(
    hinton_kd(log32(Q), log32(P), temperature=2.0), 4 * kl64(p, q), rtol=1e-6
  )


def test_gradients_follow_their_formulas():
  q, p = jax.nn.softmax(log32(Q)), jax.nn.softmax(log32(P))
  np.testing.assert_allclose(jax.grad(forward_kl)(log32(Q), log32(P)), q - p, atol=1e-6)
  reverse = q * (jnp.log(q) - jnp.log(p) - reverse_kl(log32(Q), log32(P)))
  np.testing.assert_allclose(jax.grad(reverse_kl)(log32(Q), log32(P)), reverse, atol=1e-6)
  # T (q_T - p_T): the factor T² meets 1 / T from the softening.
  soft = jax.nn.softmax(log32(Q) / 4) - jax.nn.softmax(log32(P) / 4)
  np.testing.assert_allclose(jax.grad(hinton_kd)(log32(Q), log32(P)), 4 * soft, atol=1e-6)


_forward_and_reverse = jit(
  lambda s, t, temperature: (
    forward_kl(s, t, temperature=temperature),
    reverse_kl(s, t, temperature=temperature),
  )
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.2, 8.0))
def test_float64_twin(seed, temperature):
  student, teacher = random_logits(seed, (3, 7))
  p, q = (np.exp(log_softmax64(z, temperature)) for z in (teacher, student))
  both = _forward_and_reverse(student, teacher, temperature)
  for value, wanted in zip(both, (kl64(p, q), kl64(q, p)), strict=True):
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    assert (np.asarray(value) >= 0).all()


def test_high_temperature_limit_keeps_its_digits():
  # T² KL tends to half the mean square of the difference of centred logits.
  student, teacher = (z.astype(np.float64) for z in random_logits(0, (5, 6)))
  gap = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
  value = hinton_kd(jnp.float32(student), jnp.float32(teacher), temperature=3000.0)
  np.testing.assert_allclose(value, np.square(gap).mean(-1) / 2, rtol=3e-3)


def test_equal_sides_give_zero():
  z = jnp.asarray(random_logits(1, (4, 5))[0])
  for loss in (forward_kl, reverse_kl, hinton_kd):
    np.testing.assert_allclose(loss(z, z), 0.0, atol=1e-7)


def test_excluding_what_the_other_allows_is_infinite():
  allows, excludes = jnp.zeros(2), jnp.array([0.0, -jnp.inf])
  assert forward_kl(excludes, allows) == jnp.inf
  assert reverse_kl(allows, excludes) == jnp.inf
  # KL((1, 0) || (1/2, 1/2)) is ln 2.
  np.testing.assert_allclose(forward_kl(allows, excludes), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(reverse_kl(excludes, allows), np.log(2), rtol=1e-6)


def test_mdistiller():
  stored = reference("mdistiller")
  teacher = stored["teacher"]
  wanted = {
    "kd_t1": lambda s: jnp.mean(hinton_kd(s, teacher, temperature=1.0)),
    "kd_t4": lambda s: jnp.mean(hinton_kd(s, teacher)),
  }
  matches(stored, wanted, stored["student"])


def test_distillm():
  stored = reference("distillm")
  teacher, where = stored["teacher"], stored["labels"] != -100
  # Its forward KL is a cross-entropy: larger by the teacher's mean entropy, same gradient.
  log_p = log_softmax64(teacher)
  entropy = jnp.float32(-(np.exp(log_p) * log_p).sum(-1)[where].mean())
  wanted = {
    "forward_kl": lambda s: mean_over(forward_kl(s, teacher), where) + entropy,
    "reverse_kl": lambda s: mean_over(reverse_kl(s, teacher), where),
  }
  matches(stored, wanted, stored["student"])


def test_a_student_sure_of_the_wrong_class_still_learns():
  # In float32 the student's probability of class 0 is exactly 0.
  student, teacher = jnp.array([-200.0, 0.0]), jnp.array([0.0, -200.0])
  np.testing.assert_allclose(forward_kl(student, teacher), 200.0, **CLOSE)
  np.testing.assert_allclose(jax.grad(forward_kl)(student, teacher), [-1.0, 1.0], **CLOSE)
