"""How alike maps are: by hand, without padding, without the first key."""

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import attention_similarity


def maps(seed=0):
  return np.random.default_rng(seed).dirichlet(np.ones(5), (3, 2, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("without_first", [False, True])
def test_it_is_the_mean_cosine_of_rows_that_count(without_first):
  attention, where = maps(), np.arange(10).reshape(2, 5) % 3 > 0
  total, count = jax.jit(attention_similarity, static_argnames="without_first")(
    attention, where, without_first=without_first
  )
  wanted = np.zeros((3, 3))
  for b, t in zip(*np.nonzero(where), strict=True):
    for head in range(4):
      rows = attention[:, b, head, t, int(without_first) :].astype(np.float64)
      rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
      wanted += rows @ rows.T / (4 * where.sum())
  np.testing.assert_allclose(total / count, wanted, rtol=1e-5)
  np.testing.assert_allclose(np.diag(total / count), 1, rtol=1e-5)


def test_padding_changes_nothing_and_batches_add_up():
  attention, where = maps(), np.ones((2, 5), bool)
  whole = attention_similarity(attention, where)
  padded = np.concatenate([attention, np.full_like(attention[:, :, :, :1], np.nan)], axis=3)
  total, count = attention_similarity(padded, np.pad(where, ((0, 0), (0, 1))))
  np.testing.assert_allclose(total, whole[0], rtol=1e-6)
  parts = [attention_similarity(attention[:, i : i + 1], where[i : i + 1]) for i in (0, 1)]
  np.testing.assert_allclose(sum(p[0] for p in parts), whole[0], rtol=1e-5)
  assert count == whole[1] == sum(p[1] for p in parts) == 40


def test_shapes_that_do_not_fit_are_told():
  with pytest.raises(KdjaxError, match=r"where \(2, 4\)"):
    attention_similarity(maps(), np.ones((2, 4), bool))
