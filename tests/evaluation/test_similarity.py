"""Centred kernel alignment: invariances, bias, a float64 twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import batch_cka, finalize, linear_cka, merge

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=(6, 9))).astype(np.float32)


def cka(x, y, **options):
  return float(linear_cka(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), **options))


def hsic_by_definition(k, l):
  """The unbiased estimate of Song et al., term by term."""
  n = len(k)
  k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
  one = np.ones(n)
  terms = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
  return (terms - 2 * (one @ k @ l @ one) / (n - 2)) / (n * (n - 3))


@pytest.mark.parametrize("debiased", [True, False])
def test_rotation_scale_and_shift_change_nothing(debiased):
  rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
  assert cka(X, 3 * X @ rotation - 50, debiased=debiased) == pytest.approx(1, abs=2e-5)
  assert cka(X @ rotation + 7, Y, debiased=debiased) == pytest.approx(
    cka(X, Y, debiased=debiased), abs=2e-5
  )


def test_equals_the_definitions_in_float64():
  x, y = X.astype(np.float64), Y.astype(np.float64)
  k, l = x @ x.T, y @ y.T  # not centred: the unbiased estimate centres by itself
  want = hsic_by_definition(k, l) / np.sqrt(hsic_by_definition(k, k) * hsic_by_definition(l, l))
  assert cka(X, Y) == pytest.approx(want, rel=1e-4)
  x, y = x - x.mean(0), y - y.mean(0)
  norm = np.linalg.norm
  want = norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
  assert cka(X, Y, debiased=False) == pytest.approx(want, rel=1e-5)


def test_unrelated_wide_features_look_alike_only_to_the_biased_form():
  a, b = RNG.normal(size=(2, 64, 256))
  assert cka(a, b, debiased=False) > 0.7
  assert abs(cka(a, b)) < 0.05


def test_symmetric_and_the_same_under_jit():
  assert cka(X, Y) == pytest.approx(cka(Y, X), abs=1e-6)
  assert float(jax.jit(linear_cka)(X, Y)) == pytest.approx(cka(X, Y), abs=1e-6)


def test_a_constant_side_gives_zero():
  assert cka(np.ones((8, 3)), X[:8]) == 0.0


def test_rows_must_pair_and_suffice():
  with pytest.raises(KdjaxError, match=r"\(40, 6\), teacher \(39, 9\)"):
    cka(X, Y[:39])
  with pytest.raises(KdjaxError, match="at least 4"):
    cka(X[:3], Y[:3])


def in_batches(x, y, where, size):
  """The finalised alignment of batches of equal size."""
  run, total = jax.jit(batch_cka), {}
  for i in range(0, len(x), size):
    total = merge(total, run(x[i : i + size], y[i : i + size], where[i : i + size]))
  return finalize({f"seed0/{name}": pair for name, pair in total.items()})


def test_one_batch_is_the_whole_and_rows_that_do_not_count_leave_no_trace():
  assert in_batches(X, Y, np.ones(40, bool), 40) == {
    "seed0/cka": pytest.approx(cka(X, Y), rel=1e-5)
  }
  x, y = np.full((50, 6), np.nan, np.float32), np.full((50, 9), np.inf, np.float32)
  where = RNG.permutation(50) < 40
  x[where], y[where] = X, Y
  assert in_batches(x, y, where, 50)["seed0/cka"] == pytest.approx(cka(X, Y), rel=1e-4)


def test_batches_are_means_of_estimates_without_bias():
  x, y = X[:36], Y[:36]
  parts = [(a.astype(np.float64) - a.mean(0)) for a in (x, y)]
  parts = [np.split(a, 3) for a in parts]

  def mean(left, right):
    return np.mean([hsic_by_definition(a @ a.T, b @ b.T) for a, b in zip(left, right, strict=True)])

  want = mean(*parts) / np.sqrt(mean(parts[0], parts[0]) * mean(parts[1], parts[1]))
  found = in_batches(x, y, np.ones(36, bool), 12)["seed0/cka"]
  assert found == pytest.approx(want, rel=1e-3)
  # A batch of three rows says nothing: it is left out.
  where = np.arange(36) < 27
  assert in_batches(x[:27], y[:27], where[:27], 12)["seed0/cka"] == pytest.approx(
    in_batches(x[:24], y[:24], where[:24], 12)["seed0/cka"], rel=1e-6
  )


def test_a_constant_side_has_no_alignment_in_batches_either():
  assert in_batches(X, np.ones_like(Y), np.ones(40, bool), 20) == {"seed0/cka": 0.0}
