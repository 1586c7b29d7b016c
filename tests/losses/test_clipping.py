"""Forward KL on a learned window of the teacher's ranking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from kdjax.losses import clipped_forward_kl, forward_kl

from .checks import P, Q, gradient_is_the_slope, jit, kl64, log32, log_softmax64, random_logits


def test_golden_values():
  # Masses before the classes: 0, .7, .9. Up to .8 the window holds two of them; up to .5 one, and
  # the label, wherever it lies.
  wanted = {
    (0.8, 0): kl64(P, Q),
    (0.5, 0): kl64([0.7, 0.3], [0.1, 0.9]),
    (0.5, 2): kl64([0.7, 0.1, 0.2], [0.1, 0.6, 0.3]),
  }
  upper, labels = (np.array(x) for x in zip(*wanted, strict=True))
  rows = [jnp.broadcast_to(log32(x), (3, 3)) for x in (Q, P)]
  got = jit(lambda *x: clipped_forward_kl(*x, upper=upper, softness=1e-3))(*rows, labels)
  np.testing.assert_allclose(got, list(wanted.values()), rtol=1e-5)


def _twin(student, teacher, labels, lower, upper, softness):
  p, q = (np.exp(log_softmax64(z)) for z in (teacher, student))
  values = []
  for row, (one_p, one_q) in enumerate(zip(p, q, strict=True)):
    order = np.argsort(-one_p)
    before = np.empty_like(one_p)
    before[order] = np.cumsum(one_p[order]) - one_p[order]
    sigmoid = lambda x: 1 / (1 + np.exp(-x / softness))  # noqa: E731
    inside = sigmoid(before - lower[row]) * sigmoid(upper[row] - before)
    inside[[labels[row], order[0]]] = 1
    pair = [np.append(inside * x, ((1 - inside) * x).sum()) for x in (one_p, one_q)]
    values.append(kl64(*pair))
  return values


_both = jit(
  lambda s, t, labels, lower, upper: (
    clipped_forward_kl(s, t, labels, lower=lower, upper=upper, softness=0.05),
    forward_kl(s, t),
  )
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_float64_twin_and_bound(seed):
  student, teacher = random_logits(seed, (3, 7))
  rng = np.random.default_rng(seed)
  labels, ends = rng.integers(0, 7, 3), rng.random((2, 3)).astype(np.float32)
  values, whole = _both(student, teacher, labels, *ends)
  np.testing.assert_allclose(
    values, _twin(student, teacher, labels, *ends, 0.05), rtol=1e-4, atol=1e-6
  )
  assert (values >= -1e-6).all() and (values <= whole + 1e-5).all()


def test_the_whole_window_with_sharp_edges_is_forward_kl():
  student, teacher = (jnp.asarray(z) for z in random_logits(1, (5, 6)))
  total = jit(
    jax.value_and_grad(
      lambda s: jnp.sum(
        clipped_forward_kl(s, teacher, jnp.zeros(5, jnp.int32), upper=1.0, softness=1e-5)
      )
    )
  )
  wanted = jit(jax.value_and_grad(lambda s: jnp.sum(forward_kl(s, teacher))))(student)
  for got, want in zip(total(student), wanted, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_ends_are_learned_by_their_slope():
  student, teacher = (jnp.asarray(z) for z in random_logits(2, (5, 6)))

  def total(ends):
    labels = jnp.zeros(5, jnp.int32)
    value = clipped_forward_kl(student, teacher, labels, lower=ends[0], upper=ends[1], softness=0.2)
    return jnp.sum(value)

  ends = jnp.asarray(np.random.default_rng(3).random((2, 5)), jnp.float32)
  gradient_is_the_slope(total, ends, jnp.ones((2, 5)))
  by_lower, by_upper = jit(jax.grad(total))(ends)
  assert (by_lower < 0).all() and (by_upper > 0).all()  # a narrower window costs less


def test_bad_options_are_refused():
  zeros, label = jnp.zeros(3), jnp.asarray(0)
  with pytest.raises(KdjaxError, match="upper is 2"):
    clipped_forward_kl(zeros, zeros, label, upper=2)
  with pytest.raises(KdjaxError, match="softness is 0"):
    clipped_forward_kl(zeros, zeros, label, softness=0)
  with pytest.raises(KdjaxError, match=r"lower has shape \(2,\); it must broadcast to \(\)"):
    clipped_forward_kl(zeros, zeros, label, lower=jnp.zeros(2))
