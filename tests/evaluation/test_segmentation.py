"""Intersection over union: by hand, in batches, without what does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import finalize, intersection_over_union, merge


def test_sums_of_batches_are_divided_once_and_absent_classes_left_out():
  rng = np.random.default_rng(0)
  found, wanted = rng.integers(0, 3, (6, 10)), rng.integers(-1, 3, (6, 10))
  where = np.broadcast_to(np.arange(6)[:, None] < 5, (6, 10))
  logits = np.where(where[..., None], np.eye(4)[found], np.nan).astype(np.float32)
  run, total = jax.jit(intersection_over_union), {}
  for i in (0, 3):
    cut = np.s_[i : i + 3]
    total = merge(total, run(logits[cut], jnp.asarray(wanted[cut]), jnp.asarray(where[cut])))
  known = where & (wanted >= 0)
  by_hand = [
    (known & (found == c) & (wanted == c)).sum() / (known & ((found == c) | (wanted == c))).sum()
    for c in range(3)
  ]
  told = finalize({f"teacher/{name}": pair for name, pair in total.items()})
  np.testing.assert_allclose(told["teacher/iou"], [*by_hand, 0], rtol=1e-6)
  assert told["teacher/mean_iou"] == pytest.approx(np.mean(by_hand))


def test_what_does_not_fit_is_told():
  with pytest.raises(KdjaxError, match="one label for each place"):
    intersection_over_union(jnp.zeros((2, 3, 4)), jnp.zeros((2,), jnp.int32))
