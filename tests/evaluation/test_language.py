"""Next-token metrics: perplexity of each domain, counts, masks."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.evaluation.classification import finalize
from kdjax.evaluation.language import next_token

LOGITS = jax.random.normal(jax.random.key(0), (2, 5, 7))
LABELS = jnp.array([[1, 2, -1, 3, 0], [6, 5, 4, 3, 2]])
WHERE = jnp.array([[True] * 5, [True, True, True, False, False]])


def test_perplexity_is_exp_of_the_mean_nll_over_what_counts():
  domain = jnp.array([[0] * 5, [1] * 5])
  values = finalize(next_token(LOGITS, LABELS, WHERE, domain, ("a", "b")))
  log_probs = np.asarray(jax.nn.log_softmax(LOGITS))
  first = [-log_probs[0, t, LABELS[0, t]] for t in (0, 1, 3, 4)]
  second = [-log_probs[1, t, LABELS[1, t]] for t in (0, 1, 2)]
  np.testing.assert_allclose(values["nll"], np.mean(first + second), rtol=1e-5)
  np.testing.assert_allclose(values["perplexity"], np.exp(np.mean(first + second)), rtol=1e-5)
  np.testing.assert_allclose(values["perplexity/a"], np.exp(np.mean(first)), rtol=1e-5)
  np.testing.assert_allclose(values["perplexity/b"], np.exp(np.mean(second)), rtol=1e-5)


def test_pairs_of_two_halves_add_up_to_the_whole():
  whole = next_token(LOGITS, LABELS, WHERE)
  halves = [next_token(LOGITS[i : i + 1], LABELS[i : i + 1], WHERE[i : i + 1]) for i in range(2)]
  for name in ("nll", "perplexity", "accuracy"):
    for part in range(2):
      np.testing.assert_allclose(sum(h[name][part] for h in halves), whole[name][part], rtol=1e-6)


def test_uniform_logits_have_the_vocabulary_as_perplexity():
  values = finalize(
    next_token(jnp.zeros((1, 3, 50)), jnp.ones((1, 3), int), jnp.ones((1, 3), bool))
  )
  np.testing.assert_allclose(values["perplexity"], 50, rtol=1e-5)
