"""Losses against top-k and sampled teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.losses import sparse_cross_entropy, sparse_forward_kl, top_k_signal

from .checks import P, Q, jit, kl64, log32, log_softmax64, matches, random_logits, reference

TAILS = ("bucket", "spread", "renormalise", "renormalise_teacher", "drop")


def test_golden_values():
  # K = 1: the bucket form is KL((.7, .3) || (.1, .9)); K = 2: p on (.7, .2), q on (.1, .3).
  wanted = {
    (1, "bucket"): kl64([0.7, 0.3], [0.1, 0.9]),
    (1, "renormalise"): 0.0,
    (2, "bucket"): kl64(P, Q),
    (1, "spread"): kl64([0.7, 0.15, 0.15], Q),
    (2, "renormalise"): kl64([7 / 9, 2 / 9], [1 / 4, 3 / 4]),
    (2, "renormalise_teacher"): kl64([7 / 9, 2 / 9], [0.1, 0.3]),
    (2, "drop"): 0.7 * np.log(7) + 0.2 * np.log(2 / 3),
  }
  np.testing.assert_allclose(
    list(wanted.values()),
    [1.032553, 0, 1.101868, 1.050221, 0.612452, 1.528743, 1.281044],
    atol=1e-6,
  )
  for (k, tail), value in wanted.items():
    signal = top_k_signal(log32(P), k=k)
    got = sparse_forward_kl(log32(Q), signal, tail=tail)
    np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


def _twin(student, teacher, k, tail, temperature):
  log_p, log_q = log_softmax64(teacher, temperature), log_softmax64(student, temperature)
  ids = np.argsort(-log_p, axis=-1)[:, :k]
  p, q = (np.exp(np.take_along_axis(x, ids, -1)) for x in (log_p, log_q))
  if tail == "bucket":
    p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
  if tail == "spread":
    full = np.repeat((1 - p.sum(-1, keepdims=True)) / (log_p.shape[-1] - k), log_p.shape[-1], -1)
    np.put_along_axis(full, ids, p, -1)
    p, q = full, np.exp(log_q)
  if tail in ("renormalise", "renormalise_teacher"):
    p = p / p.sum(-1, keepdims=True)
  if tail == "renormalise":
    q = q / q.sum(-1, keepdims=True)
  return (p * np.log(p / q)).sum(-1), -(p * np.log(q)).sum(-1)


@jit
def _all(student, teacher):
  signal = top_k_signal(teacher, k=3, temperature=1.5)
  return {
    tail: (
      sparse_forward_kl(student, signal, tail=tail, temperature=1.5),
      sparse_cross_entropy(student, signal, tail=tail, temperature=1.5),
    )
    for tail in TAILS
  } | {"full": losses.forward_kl(student, teacher, temperature=1.5)}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_float64_twin_and_order(seed):
  student, teacher = random_logits(seed, (3, 8))
  values = _all(student, teacher)
  for tail in TAILS:
    wanted = _twin(student, teacher, 3, tail, 1.5)
    np.testing.assert_allclose(values[tail], wanted, rtol=1e-4, atol=1e-5)
  bucket = values["bucket"][0]
  assert (bucket >= -1e-6).all() and (bucket <= values["full"] + 1e-5).all()


@pytest.mark.parametrize("k", [5, 6])
def test_bucket_is_the_full_divergence_from_all_but_one_class_on(k):
  student, teacher = (jnp.asarray(z) for z in random_logits(1, (4, 6)))
  signal = top_k_signal(teacher, k=k)
  both = jit(
    lambda s: jax.value_and_grad(lambda x: jnp.sum(sparse_forward_kl(x, signal, tail="bucket")))(s)
  )
  wanted = jax.value_and_grad(lambda x: jnp.sum(losses.forward_kl(x, teacher)))(student)
  for got, want in zip(both(student), wanted, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@jit
def _slopes(student, signal):
  """Values and gradients of the forms, in the order of TAILS."""
  return [
    part
    for tail in TAILS
    for part in jax.value_and_grad(
      lambda s, tail=tail: jnp.sum(sparse_forward_kl(s, signal, tail=tail))
    )(student)
  ]


def test_gradients_outside_the_support():
  student = jnp.asarray(random_logits(2, (1, 6))[0][0])
  teacher = jnp.array([3.0, 2.0, 0.0, 0.0, -1.0, -1.0])
  q, p = jax.nn.softmax(student), jax.nn.softmax(teacher)
  signal = top_k_signal(teacher, k=2)
  slope = dict(zip(TAILS, _slopes(student, signal)[1::2], strict=True))
  mass_p, mass_q = jnp.sum(p[:2]), jnp.sum(q[:2])
  np.testing.assert_allclose(slope["renormalise"][2:], 0.0, atol=1e-6)  # free
  np.testing.assert_allclose(slope["renormalise_teacher"][2:], q[2:], atol=1e-6)  # pushed to 0
  np.testing.assert_allclose(slope["drop"][2:], mass_p * q[2:], atol=1e-6)
  np.testing.assert_allclose(slope["spread"][2:], q[2:] - (1 - mass_p) / 4, atol=1e-6)
  # One bucket: pulled to the teacher's mass, in the student's own proportions.
  bucket = q[2:] * (1 - (1 - mass_p) / (1 - mass_q))
  np.testing.assert_allclose(slope["bucket"][2:], bucket, atol=1e-6)


def test_spread_is_the_dense_loss_where_nothing_or_a_flat_tail_is_left():
  student = jnp.asarray(random_logits(9, (2, 6))[0])
  teacher = jnp.array([[3.0, 1.0, -1.0, -1.0, -1.0, -1.0], [2.0, 5.0, 0.5, 0.5, 0.5, 0.5]])
  for k in (2, 5, 6):
    got = sparse_cross_entropy(student, top_k_signal(teacher, k=k), tail="spread")
    np.testing.assert_allclose(got, losses.soft_cross_entropy(student, teacher), rtol=1e-5)
  # Rounding may bring the stored mass above 1; the rest is then nothing, not less than that.
  over = losses.TopK(jnp.array([0, 1]), jnp.log(jnp.array([0.7, 0.301])), vocab=6, temperature=1.0)
  value, slope = jax.value_and_grad(lambda s: sparse_cross_entropy(s, over, tail="spread"))(
    student[0]
  )
  q = jax.nn.softmax(student[0])
  np.testing.assert_allclose(value, -0.7 * jnp.log(q[0]) - 0.301 * jnp.log(q[1]), rtol=1e-5)
  assert np.isfinite(slope).all() and (slope[2:] > 0).all()


def test_a_student_sure_of_the_support_still_learns_the_tail():
  # The student's mass outside is e^-40, nothing next to 1 in float32.
  student = jnp.array([40.0, 0.0, 0.0])
  signal = top_k_signal(jnp.log(jnp.array([0.5, 0.3, 0.2])), k=1)
  value, slope = jax.value_and_grad(lambda s: sparse_forward_kl(s, signal, tail="bucket"))(student)
  wanted = 0.5 * np.log(0.5) + 0.5 * np.log(0.5) + 0.5 * (40 - np.log(2))
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(slope, [0.5, -0.25, -0.25], atol=1e-5)


def test_unused_slots_change_nothing():
  student, teacher = (jnp.asarray(z) for z in random_logits(3, (2, 6)))
  signal = top_k_signal(teacher, k=2)
  # The empty slots name a class of the support and one outside.
  padded = losses.TopK(
    jnp.concatenate([signal.ids, signal.ids[:, :1], jnp.argmin(teacher, -1, keepdims=True)], -1),
    jnp.concatenate([signal.log_probs, jnp.full((2, 2), -jnp.inf)], -1),
    vocab=6,
    temperature=1.0,
  )
  for got, want in zip(_slopes(student, padded), _slopes(student, signal), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_sampled_loss_is_unbiased_in_value_and_gradient():
  student, teacher = (jnp.asarray(z) for z in random_logits(4, (2, 6), 1.0))

  def one(rng):
    signal = losses.sampled_signal(rng, teacher, num_samples=8)
    return jax.value_and_grad(lambda s: jnp.sum(sparse_cross_entropy(s, signal)))(student)

  values, slopes = jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 2000))
  wanted = jax.value_and_grad(lambda s: jnp.sum(losses.soft_cross_entropy(s, teacher)))(student)
  for draws, want in ((values, wanted[0]), (slopes, wanted[1])):
    error = np.std(draws, axis=0) / np.sqrt(2000)
    assert (np.abs(np.mean(draws, axis=0) - want) < 5 * error + 1e-5).all()
    assert np.max(error) < 0.02


def test_every_class_as_a_sample_is_the_dense_loss():
  student, teacher = (jnp.asarray(z) for z in random_logits(6, (3, 5)))
  ids = jnp.tile(jnp.arange(5), (3, 1))
  signal = losses.Sampled(ids, jax.nn.softmax(teacher / 2), vocab=5, temperature=2.0)
  np.testing.assert_allclose(
    sparse_cross_entropy(student, signal, temperature=2.0),
    losses.soft_cross_entropy(student, teacher, temperature=2.0),
    rtol=1e-5,
  )


def test_a_free_student_ends_closest_to_the_teacher_with_samples_then_a_bucket():
  # 16 contexts, 24 classes, K = 6, an unconstrained student trained by gradient descent.
  teacher = jnp.asarray(1.5 * np.random.default_rng(7).standard_normal((16, 24)), jnp.float32)
  signal = top_k_signal(teacher, k=6)

  def train(loss):
    def step(student, rng):
      return student - 2.0 * jax.grad(lambda s: jnp.sum(loss(s, rng)))(student), None

    keys = jax.random.split(jax.random.key(8), 600)
    student = jit(lambda keys: jax.lax.scan(step, jnp.zeros_like(teacher), keys)[0])(keys)
    return jnp.mean(losses.forward_kl(student, teacher))

  def sampled(student, rng):
    drawn = losses.sampled_signal(rng, teacher, num_samples=6)
    return 0.05 * sparse_cross_entropy(student, drawn)

  end = {
    tail: train(lambda s, _, tail=tail: sparse_forward_kl(s, signal, tail=tail))
    for tail in ("bucket", "renormalise", "renormalise_teacher")
  }
  end["sampled"] = train(sampled)
  assert end["sampled"] < end["bucket"] < end["renormalise"] < end["renormalise_teacher"]


def test_trl():
  stored = reference("trl")

  def mean(k, tail):
    signal = top_k_signal(jnp.asarray(stored["teacher"]), k=k)
    return lambda s: jnp.mean(sparse_forward_kl(s, signal, tail=tail))

  wanted = {f"top{k}_tail": mean(k, "bucket") for k in (1, 3, 11)}
  wanted |= {f"top{k}_renormalised": mean(k, "renormalise") for k in (1, 3, 11)}
  matches(stored, wanted, stored["student"])


def test_tinyvit():
  stored = reference("tinyvit/loss")

  def mean(k):
    signal = top_k_signal(jnp.asarray(stored["teacher"]), k=k)
    return lambda s: jnp.mean(sparse_cross_entropy(s, signal, tail="spread"))

  matches(stored, {f"top{k}": mean(k) for k in (1, 3, 11)}, stored["student"])


def test_nothing_is_silent():
  student = jnp.zeros((2, 4))
  top = top_k_signal(student, k=2, temperature=2.0)
  drawn = losses.Sampled(top.ids, jnp.full((2, 2), 0.5), vocab=4, temperature=1.0)
  for loss in (sparse_forward_kl, sparse_cross_entropy):
    with pytest.raises(KdjaxError, match=f"{loss.__name__}: tail is None; .*bucket"):
      loss(student, top, temperature=2.0)
    with pytest.raises(KdjaxError, match=r"temperature is 1\.0, but .* at 2\.0"):
      loss(student, top, tail="bucket")
    with pytest.raises(KdjaxError, match="the signal is a Dense; TopK or Sampled is wanted"):
      loss(student, losses.Dense(student), tail="bucket")
  with pytest.raises(KdjaxError, match="use sparse_cross_entropy"):
    sparse_forward_kl(student, drawn)
  with pytest.raises(KdjaxError, match="a Sampled signal has no tail"):
    sparse_cross_entropy(student, drawn, tail="bucket")
