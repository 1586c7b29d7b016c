"""Skewed KL and the generalised Jensen-Shannon divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from kdjax.losses import (
  forward_kl,
  generalized_jsd,
  reverse_kl,
  skewed_forward_kl,
  skewed_reverse_kl,
)

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


@pytest.mark.parametrize(("beta", "wanted"), [(0.1, 0.092674), (0.5, 0.230645), (0.9, 0.086497)])
def test_golden_jsd(beta, wanted):
  m = beta * P + (1 - beta) * Q
  by_hand = beta * (P * np.log(P / m)).sum() + (1 - beta) * (Q * np.log(Q / m)).sum()
  np.testing.assert_allclose(by_hand, wanted, atol=1e-6)
  np.testing.assert_allclose(generalized_jsd(log32(Q), log32(P), beta=beta), by_hand, rtol=1e-5)


def test_golden_skewed():
  # m = .1 p + .9 q = (.16, .29, .55) and .9 p + .1 q = (.64, .21, .15).
  forward = (P * np.log(P / [0.16, 0.29, 0.55])).sum()
  reverse = (Q * np.log(Q / [0.64, 0.21, 0.15])).sum()
  np.testing.assert_allclose([forward, reverse], [0.788347, 0.753149], atol=1e-6)
  np.testing.assert_allclose(skewed_forward_kl(log32(Q), log32(P)), forward, rtol=1e-6)
  np.testing.assert_allclose(skewed_reverse_kl(log32(Q), log32(P)), reverse, rtol=1e-6)


# Traced shares are compiled once for all examples.
_jsd = jit(lambda s, t, beta: generalized_jsd(s, t, beta=beta))
_rescaled = jit(lambda s, t, beta: generalized_jsd(s, t, beta=beta, rescaled=True))
_skewed = jit(
  lambda s, t, alpha: (skewed_forward_kl(s, t, alpha=alpha), skewed_reverse_kl(s, t, alpha=alpha))
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), share=st.floats(0.001, 0.999), scale=st.floats(0.01, 20.0))
def test_float64_twins_and_bounds(seed, share, scale):
  share = float(np.float32(share))
  student, teacher = random_logits(seed, (3, 7), scale)
  p, q = (np.exp(log_softmax64(z)) for z in (teacher, student))
  m = share * p + (1 - share) * q

  jsd = share * kl64(p, m) + (1 - share) * kl64(q, m)
  value = _jsd(student, teacher, share)
  np.testing.assert_allclose(value, jsd, rtol=2e-4, atol=1e-7)
  entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
  assert (value >= 0).all() and (value <= entropy + 1e-6).all()
  np.testing.assert_allclose(_jsd(teacher, student, 1 - share), value, rtol=1e-3, atol=1e-7)
  np.testing.assert_allclose(
    _rescaled(student, teacher, share) * share * (1 - share), value, rtol=1e-4, atol=1e-7
  )

  forward, reverse = _skewed(student, teacher, share)
  np.testing.assert_allclose(forward, kl64(p, m), rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(reverse, kl64(q, (1 - share) * p + share * q), rtol=2e-4, atol=1e-6)
  # Sums of seven products in float32: relative to the bound, which is 6.9 for the smallest share.
  assert (np.maximum(forward, reverse) <= np.log(1 / share) * (1 + 1e-5) + 1e-6).all()


_rescaled_slopes = jit(
  jax.vmap(
    jax.value_and_grad(lambda s, t, beta: generalized_jsd(s, t, beta=beta, rescaled=True)),
    (0, 0, None),
  )
)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_rescaled_jsd_ends_in_the_two_kls(scale):
  student, teacher = random_logits(5, (4, 6), scale)
  both = _rescaled_slopes
  for end, loss in ((0.0, forward_kl), (1.0, reverse_kl)):
    wanted = jit(jax.vmap(jax.value_and_grad(loss)))(student, teacher)
    for got, want in zip(both(student, teacher, end), wanted, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  if scale < 10:  # so close to an end that float32 cannot tell the divergences apart
    for got, want in zip(both(student, teacher, 1e-7), both(student, teacher, 0.0), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_plain_jsd_over_beta_tends_to_forward_kl():
  student, teacher = (jnp.asarray(z) for z in random_logits(6, (4, 6), 1.0))
  small = generalized_jsd(student, teacher, beta=1e-5) / 1e-5
  np.testing.assert_allclose(small, forward_kl(student, teacher), rtol=1e-3)


def test_skew_without_share_is_the_plain_kl():
  student, teacher = (jnp.asarray(z) for z in random_logits(7, (4, 6)))
  np.testing.assert_allclose(
    skewed_forward_kl(student, teacher, alpha=0.0), forward_kl(student, teacher), rtol=1e-5
  )
  np.testing.assert_allclose(
    skewed_reverse_kl(student, teacher, alpha=0.0), reverse_kl(student, teacher), rtol=1e-5
  )
  np.testing.assert_array_equal(skewed_forward_kl(student, teacher, alpha=1.0), 0.0)


def test_disjoint_sides_reach_the_bounds():
  student, teacher = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
  np.testing.assert_allclose(generalized_jsd(student, teacher), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(skewed_forward_kl(student, teacher), np.log(10), rtol=1e-6)
  np.testing.assert_allclose(skewed_reverse_kl(student, teacher), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_a_beta_out_of_range_is_refused(beta):
  with pytest.raises(KdjaxError, match=r"generalized_jsd: beta is .* between 0 and 1"):
    generalized_jsd(jnp.zeros(3), jnp.zeros(3), beta=beta)


def test_the_ends_are_the_two_divergences_and_the_plain_form_jumps_there():
  student, teacher = (jnp.asarray(z) for z in random_logits(8, (4, 6), 1.0))
  for beta, wanted in ((0.0, forward_kl), (1.0, reverse_kl)):
    for traced in (beta, jnp.float32(beta)):
      np.testing.assert_allclose(
        generalized_jsd(student, teacher, beta=traced), wanted(student, teacher), rtol=1e-5
      )
  assert float(generalized_jsd(student, teacher, beta=1e-6).max()) < 1e-4


@pytest.mark.parametrize("loss", [skewed_forward_kl, skewed_reverse_kl])
def test_a_bad_alpha_is_refused(loss):
  with pytest.raises(KdjaxError, match=f"{loss.__name__}: alpha is 1.1"):
    loss(jnp.zeros(3), jnp.zeros(3), alpha=1.1)


def test_trl():
  stored = reference("trl")
  teacher, where = stored["teacher"], stored["labels"] != -100
  losses = {
    beta: functools.partial(generalized_jsd, beta=float(beta))
    for beta in ("0", "0.1", "0.5", "0.9", "1")
  }

  @jit
  def at(temperature):
    mean = lambda s, loss: mean_over(loss(s, teacher, temperature=temperature), where)  # noqa: E731
    student = jnp.asarray(stored["student"])
    return {beta: jax.value_and_grad(mean)(student, loss) for beta, loss in losses.items()}

  for temperature in (1.0, 2.0):
    for beta, (value, gradient) in at(temperature).items():
      key = f"jsd_{beta}_t{temperature:g}"
      np.testing.assert_allclose(value, stored[key], **CLOSE, err_msg=key)
      np.testing.assert_allclose(gradient, stored[f"{key}_grad"], **CLOSE, err_msg=key)


def test_distillm():
  stored = reference("distillm")
  teacher, where = stored["teacher"], stored["labels"] != -100
  # The skewed forward KL is a cross-entropy there: larger by the teacher's mean entropy.
  log_p = log_softmax64(teacher)
  entropy = jnp.float32(-(np.exp(log_p) * log_p).sum(-1)[where].mean())

  def mean(loss, extra=0.0, **options):
    return lambda s: mean_over(loss(s, teacher, **options), where) + extra

  wanted = {
    # js_distance(lam) weights the student by lam: beta is 1 - lam.
    "js_distance_0.9": mean(generalized_jsd, beta=0.1),
    "js_distance_0.5": mean(generalized_jsd, beta=0.5),
    "skewed_forward_kl": mean(skewed_forward_kl, entropy),
    "skewed_forward_kl_0.3": mean(skewed_forward_kl, entropy, alpha=0.3),
    "skewed_reverse_kl": mean(skewed_reverse_kl),
    "skewed_reverse_kl_0.3": mean(skewed_reverse_kl, alpha=0.3),
  }
  matches(stored, wanted, stored["student"])


def test_saturated_sides_keep_the_gradient_of_the_formula():
  # q of class 0 is e^-30: the mixture is dominated by the teacher there.
  student, teacher = jnp.array([-30.0, 0.0]), jnp.array([0.0, -30.0])
  gradient = jax.grad(generalized_jsd)(student, teacher)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(generalized_jsd(student, teacher), np.log(2), **CLOSE)
