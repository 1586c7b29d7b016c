"""Draws: of the right frequencies, never impossible, the same wherever they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import sparse_cross_entropy
from kdjax.losses.signals import Sampled
from kdjax.signals import codec
from kdjax.signals.draws import draw, draw_words


def words(count, seed=0):
  return jnp.asarray(
    np.concatenate([draw_words(seed, bytes([i % 256, i // 256] * 8), 1) for i in range(count)])
  )


@pytest.mark.parametrize(("vocab", "temperature"), [(1, 1.0), (7, 0.5), (50, 2.0)])
def test_frequencies_are_the_probabilities(vocab, temperature):
  logits = 2 * jax.random.normal(jax.random.key(0), (vocab,))
  p = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
  rows, number = 400, 50
  ids = draw(
    words(rows),
    jnp.broadcast_to(logits, (rows, vocab)),
    num_samples=number,
    temperature=temperature,
  )
  counts = np.bincount(np.asarray(ids).ravel(), minlength=vocab)
  total = rows * number
  # Five standard deviations of a binomial count; one more for rounding where it is certain.
  assert (np.abs(counts - total * p) <= 5 * np.sqrt(total * p * (1 - p)) + 1).all()


def test_stored_draws_are_unbiased_in_the_loss():
  # The mean cross-entropy over many records is that with the teacher itself.
  rows, vocab, number = 2000, 30, 20
  logits, student = jax.random.normal(jax.random.key(1), (2, vocab)) * 2
  ids = draw(words(rows), jnp.broadcast_to(logits, (rows, vocab)), num_samples=number)
  payload = codec.encode_sampled(np.asarray(ids), vocab=vocab)
  stored = codec.decode_sampled(payload, vocab=vocab, draws=number, slots=number)
  signal = Sampled(*map(jnp.asarray, stored), vocab=vocab, temperature=1.0)
  found = np.asarray(sparse_cross_entropy(jnp.broadcast_to(student, (rows, vocab)), signal))
  exact = float(-(jax.nn.softmax(logits) * jax.nn.log_softmax(student)).sum())
  assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(rows)
  # And so is each weight: the mean over records of what they give a class is its probability.
  given = np.zeros(vocab)
  np.add.at(given, stored[0].ravel(), stored[1].ravel() / rows)
  p = np.asarray(jax.nn.softmax(logits), np.float64)
  assert (np.abs(given - p) < 5 * np.sqrt(p * (1 - p) / (rows * number)) + 1e-4).all()


def test_impossible_classes_are_never_drawn():
  vocab = 90
  logits = jnp.full((vocab,), -jnp.inf).at[jnp.array([3, 40, 89])].set(jnp.array([0.0, 1.0, -9.0]))
  ids = draw(words(500), jnp.broadcast_to(logits, (500, vocab)), num_samples=50)
  assert set(np.unique(ids)) <= {3, 40, 89}


def test_a_draw_knows_seed_example_and_position_only():
  logits = jax.random.normal(jax.random.key(2), (4, 6, 100))
  keys = [bytes([i] * 16) for i in range(4)]
  at = jnp.asarray(np.stack([draw_words(3, key, 6) for key in keys]))
  whole = draw(at, logits, num_samples=9)
  np.testing.assert_array_equal(jax.jit(lambda w, x: draw(w, x, num_samples=9))(at, logits), whole)
  np.testing.assert_array_equal(draw(at[::-1], logits[::-1], num_samples=9), whole[::-1])
  np.testing.assert_array_equal(draw(at[2, 3:5], logits[2, 3:5], num_samples=9), whole[2, 3:5])
  assert len(np.unique(np.asarray(at).reshape(-1, 2), axis=0)) == 24
  assert not np.array_equal(draw_words(4, keys[0], 6), draw_words(3, keys[0], 6))
