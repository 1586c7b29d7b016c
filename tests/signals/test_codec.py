"""Payloads: what comes back exactly, what is rounded and by how much, how many bytes it takes."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from kdjax.errors import KdjaxError
from kdjax.signals import bits, codec

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 60), st.integers(1, 200_000))


def log_probs(rng, length, vocab):
  logits = rng.normal(size=(length, vocab)) * rng.uniform(0.1, 8, (length, 1))
  return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def top_k(log_p, k):
  ids = np.argsort(-log_p, axis=1, kind="stable")[:, :k]
  return ids, np.take_along_axis(log_p, ids, axis=1).astype(np.float32)


@FEW
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 25)), min_size=1, max_size=50))
def test_fields_come_back(fields):
  values = np.array([v & ((1 << w) - 1) for v, w in fields])
  widths = np.array([w for _, w in fields])
  for lead in (0, 3):  # fields that begin inside a byte
    stream = np.packbits(
      np.concatenate([np.ones(lead, np.uint8), bits.pack_fields(values, widths)])
    )
    np.testing.assert_array_equal(bits.read_fields(stream, lead, widths), values)


def test_fields_and_rice_codes_by_hand():
  # 5 in 3 bits is 101, 1 in 2 bits is 01: 10101000 once filled up.
  assert np.packbits(bits.pack_fields(np.array([5, 1]), np.array([3, 2]))).tolist() == [0b10101000]
  # 2 zeros and a one, none and a one: 00110000.
  assert np.packbits(bits.pack_unary(np.array([2, 0]))).tolist() == [0b00110000]
  # A mean of 64: 64 * 11 // 16 = 44, between 2^5 and 2^6. A mean below 1 has parameter 0.
  assert bits.rice_parameter(np.array([128, 1]), np.array([2, 5])).tolist() == [5, 0]


@FEW
@given(shapes, st.integers(0, 2**32 - 1))
def test_draws_come_back_exactly(shape, seed):
  length, number, vocab = shape
  rng = np.random.default_rng(seed)
  # From one class only to nearly all different.
  spread = rng.integers(1, vocab + 1, (length, 1))
  draws = rng.integers(0, spread, (length, number))
  payload = codec.encode_sampled(draws, vocab=vocab)
  ids, weights = codec.decode_sampled(payload, vocab=vocab, draws=number, slots=number)
  for row, own, weight in zip(draws, ids, weights, strict=True):
    classes, counts = np.unique(row, return_counts=True)
    np.testing.assert_array_equal(own[: len(classes)], classes)
    np.testing.assert_array_equal(weight[: len(classes)], counts.astype(np.float32) / number)
    assert not own[len(classes) :].any() and not weight[len(classes) :].any()


def test_fewer_slots_hold_what_has_fewer_classes():
  draws = np.array([[3, 3, 7], [1, 1, 1]])
  payload = codec.encode_sampled(draws, vocab=9)
  ids, weights = codec.decode_sampled(payload, vocab=9, draws=3, slots=2)
  assert ids.tolist() == [[3, 7], [1, 0]]
  np.testing.assert_allclose(weights, [[2 / 3, 1 / 3], [1, 0]])
  with pytest.raises(KdjaxError, match="2 classes where 1 fit"):
    codec.decode_sampled(payload, vocab=9, draws=3, slots=1)


@FEW
@given(
  st.integers(1, 6), st.integers(1, 50), st.sampled_from([1, 7, 50, 3000]), st.integers(0, 2**31)
)
def test_top_k_comes_back_to_half_a_step(length, k, vocab, seed):
  k = min(k, vocab)
  log_p = log_probs(np.random.default_rng(seed), length, vocab)
  ids, values = top_k(log_p, k)
  payload = codec.encode_top_k(ids, values, vocab=vocab)
  own, found = codec.decode_top_k(payload, vocab=vocab, k=k)
  order = np.argsort(ids, axis=1)
  np.testing.assert_array_equal(own, np.take_along_axis(ids, order, axis=1))
  wanted = np.take_along_axis(values.astype(np.float64), order, axis=1)
  # Half a step of rounding; scaling to the right sum moves all of a position by no more than that.
  wanted = np.maximum(wanted, wanted.max(1, keepdims=True) - 255 / 8)
  reach = np.ceil((wanted.max(1) - wanted.min(1)) * 8) / 8
  tail = 1 - np.exp(wanted).sum(1)
  allowed = reach / 255 + 1e-3 * (tail > 1e-6) + 1e-5
  assert (np.abs(found - wanted).max(1) <= allowed).all()
  if k == vocab:
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-6)
  else:
    kept = 1 - np.exp(found.astype(np.float64)).sum(1)
    np.testing.assert_allclose(kept, tail, rtol=1e-3, atol=1e-6)


def test_unused_slots_and_a_lone_class():
  ids = np.array([[4, 2, 0], [1, 0, 0]])
  values = np.array([[np.log(0.5), np.log(0.25), -np.inf], [0, -np.inf, -np.inf]], np.float32)
  own, found = codec.decode_top_k(codec.encode_top_k(ids, values, vocab=5), vocab=5, k=3)
  assert own.tolist() == [[2, 4, 0], [1, 0, 0]]
  np.testing.assert_allclose(np.exp(found), [[0.25, 0.5, 0], [1, 0, 0]], atol=2e-3)
  with pytest.raises(KdjaxError, match="no class of finite log-probability"):
    codec.encode_top_k(ids, np.full((2, 3), -np.inf), vocab=5)


@pytest.mark.parametrize("dtype", codec.HIDDEN_DTYPES)
def test_hidden_states_come_back_in_their_dtype(dtype):
  hidden = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  payload = codec.encode_hidden(hidden, dtype=dtype)
  found = codec.decode_hidden(payload, dtype=dtype, width=3)
  assert found.dtype == jnp.dtype(dtype)
  np.testing.assert_array_equal(found, hidden.astype(jnp.dtype(dtype)))
  with pytest.raises(KdjaxError, match="do not hold 5 rows of 4"):
    codec.decode_hidden(payload, dtype=dtype, width=4)


def test_sizes_at_a_vocabulary_of_151936():
  rng = np.random.default_rng(0)
  vocab, length = 151_936, 64
  # The worst there is: ids anywhere in the vocabulary.
  ids = np.stack([rng.choice(vocab, 45, replace=False) for _ in range(length)])
  values = np.log(rng.dirichlet(np.ones(46), length)[:, :45]).astype(np.float32)
  assert len(codec.encode_top_k(ids, values, vocab=vocab)) <= 4 + 125.5 * length
  # 50 draws of which 20 are different: 20 ids of 14.6 bits, 6 bits to say so, 50 for the counts.
  classes = np.stack([rng.choice(vocab, 20, replace=False) for _ in range(length)])
  draws = np.concatenate([classes, classes[:, :1].repeat(30, 1)], axis=1)
  assert len(codec.encode_sampled(draws, vocab=vocab)) <= 46 * length


@pytest.mark.parametrize("cut", [0, 3, 5, -1])
def test_truncated_payloads_are_told(cut):
  rng = np.random.default_rng(0)
  draws = rng.integers(0, 1000, (8, 10))
  ids, values = top_k(log_probs(rng, 8, 1000), 5)
  for payload, decode in (
    (codec.encode_sampled(draws, vocab=1000), {"draws": 10, "slots": 10}),
    (codec.encode_top_k(ids, values, vocab=1000), {"k": 5}),
  ):
    read = codec.decode_sampled if "draws" in decode else codec.decode_top_k
    with pytest.raises(KdjaxError, match=r"bytes|unary stream"):
      read(payload[:cut], vocab=1000, **decode)


def test_ids_outside_the_vocabulary_are_refused():
  with pytest.raises(KdjaxError, match=r"class ids lie in 0 \.\. 5; 0 \.\. 4 is wanted"):
    codec.encode_sampled(np.array([[0, 5]]), vocab=5)
