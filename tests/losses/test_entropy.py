"""Cross-entropy against labels, a teacher, and a mixture of teacher and student."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import (
  cross_entropy,
  forward_kl,
  interpolated_cross_entropy,
  soft_cross_entropy,
)

from .checks import P, Q, jit, log32, log_softmax64, matches, mean_over, random_logits, reference


def test_golden_values():
  # -ln .3, and -(.7 ln .1 + .2 ln .3 + .1 ln .6) = 1.903687.
  np.testing.assert_allclose(cross_entropy(log32(Q), jnp.array(1)), -np.log(0.3), rtol=1e-6)
  soft = -(P * np.log(Q)).sum()
  np.testing.assert_allclose(soft, 1.903687, atol=1e-6)
  np.testing.assert_allclose(soft_cross_entropy(log32(Q), log32(P)), soft, rtol=1e-6)


def test_soft_cross_entropy_is_forward_kl_plus_the_entropy():
  student, teacher = (jnp.asarray(z) for z in random_logits(0, (4, 6)))
  log_p = log_softmax64(teacher, 2.0)
  entropy = -(np.exp(log_p) * log_p).sum(-1)
  value = soft_cross_entropy(student, teacher, temperature=2.0)
  np.testing.assert_allclose(
    value, forward_kl(student, teacher, temperature=2.0) + jnp.float32(entropy), rtol=1e-5
  )


def test_a_sure_teacher_is_a_label():
  student = jnp.asarray(random_logits(1, (3, 4))[0])
  labels = jnp.array([2, 0, 3])
  teacher = jnp.where(jax.nn.one_hot(labels, 4, dtype=jnp.bool_), 0.0, -jnp.inf)
  np.testing.assert_allclose(
    soft_cross_entropy(student, teacher), cross_entropy(student, labels), rtol=1e-6
  )


_interpolated = jit(jax.value_and_grad(lambda s, t, mix: interpolated_cross_entropy(s, t, mix=mix)))


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_interpolated_target(mix):
  student, teacher = (z[0].astype(np.float64) for z in random_logits(2, (1, 6)))
  # The target is the normalised product q^(1 - mix) p^mix.
  p, q = np.exp(log_softmax64(teacher)), np.exp(log_softmax64(student))
  target = q ** (1 - mix) * p**mix
  target /= target.sum()
  value, gradient = _interpolated(jnp.float32(student), jnp.float32(teacher), mix)
  np.testing.assert_allclose(value, -(target * np.log(q)).sum(), rtol=1e-5)
  np.testing.assert_allclose(gradient, q - target, atol=1e-6)


def test_interpolation_ends_with_excluded_classes():
  student, teacher = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([2.0, 0.0, -jnp.inf])
  value, gradient = _interpolated(student, teacher, 0.0)
  assert np.isfinite(value)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
  value, gradient = _interpolated(student, teacher, 1.0)
  np.testing.assert_allclose(value, soft_cross_entropy(student, teacher), rtol=1e-6)
  np.testing.assert_allclose(gradient, jax.grad(forward_kl)(student, teacher), atol=1e-6)


def test_the_mix_may_be_traced():
  student, teacher = (jnp.asarray(z) for z in random_logits(3, (2, 5)))
  traced = jit(lambda mix: interpolated_cross_entropy(student, teacher, mix=mix))
  np.testing.assert_allclose(
    traced(0.3), interpolated_cross_entropy(student, teacher, mix=0.3), rtol=1e-6
  )
  with pytest.raises(KdjaxError, match=r"mix is 1\.2; it must lie between 0 and 1"):
    interpolated_cross_entropy(student, teacher, mix=1.2)


def test_taid():
  stored = reference("taid")
  teacher, where = stored["teacher"], stored["mask"] > 0

  def mean(mix):
    return lambda s: mean_over(interpolated_cross_entropy(s, teacher, mix=mix), where)

  wanted = {f"loss_{mix:g}": mean(mix) for mix in (0.0, 0.2, 0.4, 0.7, 1.0)}
  matches(stored, wanted, stored["student"])
