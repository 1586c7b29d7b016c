"""Accuracy among base and among novel classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import base_and_novel, finalize, harmonic_mean, merge, retrieved


def test_each_kind_is_told_apart_from_its_own_only():
  logits = jnp.array([[5.0, 1, 9, 9], [1, 5, 9, 9], [9, 9, 1, 2], [9, 9, 3, 2], [9, 9, 3, 2]])
  labels = jnp.array([0, 0, 2, 2, -1])
  found = finalize(jax.jit(lambda x, y: base_and_novel(x, y, (2, 3)))(logits, labels))
  assert found == {"base_accuracy": 0.5, "novel_accuracy": 0.5, "harmonic_mean": 0.5}


def test_batches_add_up_and_masked_rows_do_not_count():
  rng = np.random.default_rng(0)
  logits, labels = rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 6, 40)
  where = rng.random(40) < 0.7
  whole = finalize(base_and_novel(*map(jnp.asarray, (logits[where], labels[where])), (0, 4)))
  spoiled = np.where(where[:, None], logits, np.nan)
  parts = [
    base_and_novel(*(jnp.asarray(x[i : i + 20]) for x in (spoiled, labels)), (0, 4), where[i:][:20])
    for i in (0, 20)
  ]
  assert finalize(merge(*parts)) == whole
  assert whole["harmonic_mean"] == harmonic_mean(whole["base_accuracy"], whole["novel_accuracy"])


def test_harmonic_mean_of_worked_values():
  assert harmonic_mean(0.0, 0.0) == 0
  assert harmonic_mean(1.0, 0.5) == pytest.approx(2 / 3)
  prefixed = {f"teacher/{k}": (1.0, 2.0) for k in ("base_accuracy", "novel_accuracy")}
  assert finalize(prefixed)["teacher/harmonic_mean"] == 0.5


def test_retrieved_examples_count_for_their_class():
  f = jnp.eye(3)
  logits = retrieved(jnp.zeros((3, 2)), f, f[:2], jnp.array([1, 0]), alpha=2.0, beta=1.0)
  near, far = 2.0, 2 * np.exp(-1)
  np.testing.assert_allclose(logits, [[far, near], [near, far], [far, far]], rtol=1e-6)


@pytest.mark.parametrize("novel", [(), (3,), (0, 1, 2), (-1,)])
def test_novel_classes_must_be_some(novel):
  with pytest.raises(KdjaxError, match=r"must be some of the classes 0 \.\. 2, and not all"):
    base_and_novel(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), novel)
