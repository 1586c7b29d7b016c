"""Errors on damaged images, and relative to a baseline's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import corruption_errors, finalize, mean_corruption_error, merge

KINDS = ("a", "b")


def test_clean_unknown_and_masked_rows_do_not_count():
  logits = jnp.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [1, 0]])
  labels = jnp.array([1, 1, 1, 0, -1, 1])
  corruption = jnp.array([0, 1, 1, 2, 2, 2])
  where = jnp.array([True, True, True, True, True, False])
  run = jax.jit(lambda *rows: corruption_errors(*rows[:3], KINDS, rows[3]))
  found = finalize(run(logits.astype(jnp.bfloat16), labels, corruption, where))
  # Of kind a one of two is wrong, of b none of one: 1 / 3.
  wanted = {"corruption_error": 1 / 3, "corruption_error/a": 0.5, "corruption_error/b": 0.0}
  assert found == pytest.approx(wanted)


def test_batches_add_up():
  rng = np.random.default_rng(0)
  rows = (
    rng.standard_normal((60, 4)).astype(np.float32),
    rng.integers(0, 4, 60),
    rng.integers(0, 3, 60),
  )
  whole = finalize(corruption_errors(*map(jnp.asarray, rows), KINDS))
  parts = [
    corruption_errors(*(jnp.asarray(x[i : i + 20]) for x in rows), KINDS) for i in (0, 20, 40)
  ]
  assert finalize(merge(merge(*parts[:2]), parts[2])) == pytest.approx(whole)
  counts = [(rows[2] == i + 1).sum() for i in range(2)]
  mean = np.average([whole["corruption_error/a"], whole["corruption_error/b"]], weights=counts)
  assert whole["corruption_error"] == pytest.approx(mean)


def test_relative_errors_are_averaged_over_kinds():
  base = {"corruption_error/a": 0.5, "corruption_error/b": 0.2, "accuracy": 0.9}
  assert mean_corruption_error(base, base) == 1
  # (0.25 / 0.5 + 0.3 / 0.2) / 2
  own = {"corruption_error/a": 0.25, "corruption_error/b": 0.3}
  assert mean_corruption_error(own, base) == pytest.approx(1.0)
  assert mean_corruption_error(own, own | {"corruption_error/a": 0.0}) == math.inf
  zero = {"corruption_error/a": 0.0}
  assert mean_corruption_error(zero, zero) == 1


def test_what_does_not_fit_is_told():
  with pytest.raises(KdjaxError, match="kinds is empty"):
    corruption_errors(jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), ())
  with pytest.raises(KdjaxError, match="the same kinds are wanted, at least one"):
    mean_corruption_error({"corruption_error/a": 0.1}, {"corruption_error/b": 0.1})
  with pytest.raises(KdjaxError, match="at least one"):
    mean_corruption_error({}, {})
