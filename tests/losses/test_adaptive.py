"""Adaptive KL: head and tail rules, weights without gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from kdjax.losses import adaptive_kl, forward_kl, reverse_kl

from .checks import jit, kl64, log32, log_softmax64, matches, mean_over, random_logits, reference

P4 = np.array([0.4, 0.35, 0.15, 0.1])
Q4 = np.array([0.1, 0.2, 0.3, 0.4])


def test_golden_heads():
  # |p - q| = .3 .15 .15 .3. Half the mass is crossed by class 1: the paper keeps it in the head
  # (gaps .45 and .45), the official code puts it in the tail (.3 and .6).
  forward, reverse = kl64(P4, Q4), kl64(Q4, P4)
  paper, code = (forward + reverse) / 2, (forward + 2 * reverse) / 3
  np.testing.assert_allclose([paper, code], [0.509846, 0.510533], atol=1e-6)
  np.testing.assert_allclose(adaptive_kl(log32(Q4), log32(P4)), paper, rtol=1e-6)
  np.testing.assert_allclose(adaptive_kl(log32(Q4), log32(P4), crossing="tail"), code, rtol=1e-6)


def _twin(student, teacher, head_mass, crossing):
  p, q = (np.exp(log_softmax64(z)) for z in (teacher, student))
  values = []
  for one_p, one_q in zip(p, q, strict=True):
    head, mass = [], 0.0
    for index in np.argsort(-one_p):
      if crossing == "head" and mass >= head_mass:
        break
      if crossing == "tail" and head and mass + one_p[index] > head_mass:
        break
      head.append(index)
      mass += one_p[index]
    gap = np.abs(one_p - one_q)
    share = gap[head].sum() / gap.sum()
    values.append(share * kl64(one_p, one_q) + (1 - share) * kl64(one_q, one_p))
  return values


_loss = {
  crossing: jit(
    lambda s, t, mass, crossing=crossing: adaptive_kl(s, t, head_mass=mass, crossing=crossing)
  )
  for crossing in ("head", "tail")
}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), head_mass=st.floats(0.05, 0.95))
def test_float64_twin(seed, head_mass):
  student, teacher = random_logits(seed, (3, 7))
  for crossing, loss in _loss.items():
    wanted = _twin(student, teacher, head_mass, crossing)
    np.testing.assert_allclose(loss(student, teacher, head_mass), wanted, rtol=1e-5)


def test_gradient_is_that_of_the_two_kls_with_fixed_weights():
  student, teacher = (jnp.asarray(z[0]) for z in random_logits(3, (1, 6)))
  forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
  share = (adaptive_kl(student, teacher) - reverse) / (forward - reverse)
  wanted = share * jax.grad(forward_kl)(student, teacher)
  wanted += (1 - share) * jax.grad(reverse_kl)(student, teacher)
  np.testing.assert_allclose(jax.grad(adaptive_kl)(student, teacher), wanted, atol=1e-5)


def test_all_mass_in_the_head_is_forward_kl_and_none_is_reverse_kl():
  student, teacher = (jnp.asarray(z) for z in random_logits(4, (3, 6), 0.5))
  np.testing.assert_allclose(
    adaptive_kl(student, teacher, head_mass=0.9999), forward_kl(student, teacher), rtol=1e-5
  )
  np.testing.assert_allclose(
    adaptive_kl(student, teacher, head_mass=0.0), reverse_kl(student, teacher), rtol=1e-5
  )


def test_official_code():
  stored = reference("akl")
  where = stored["labels"] != -100
  matches(
    stored,
    {"akl": lambda s: mean_over(adaptive_kl(s, stored["teacher"], crossing="tail"), where)},
    stored["student"],
  )


def test_bad_options_are_refused():
  with pytest.raises(KdjaxError, match="crossing is 'paper'; it must be 'head' or 'tail'"):
    adaptive_kl(jnp.zeros(3), jnp.zeros(3), crossing="paper")
  with pytest.raises(KdjaxError, match="head_mass is 2"):
    adaptive_kl(jnp.zeros(3), jnp.zeros(3), head_mass=2)
