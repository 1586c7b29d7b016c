"""Accuracy, calibration and agreement: known values, masks, merging, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.evaluation import agreement, classification, finalize, merge, top_k_accuracy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(64, 5)).astype(np.float32) * 3
TEACHER = (LOGITS + RNG.normal(size=(64, 5))).astype(np.float32)
LABELS = RNG.integers(0, 5, 64).astype(np.int32)
WHERE = RNG.random(64) < 0.8


def metrics(logits, labels, where=None):
  where = None if where is None else jnp.asarray(where)
  return finalize(classification(jnp.asarray(logits), jnp.asarray(labels), where))


@jax.jit
def both(student, teacher, labels, where):
  return classification(student, labels, where) | agreement(student, teacher, where)


def twin(logits, labels):
  """All scalars in float64, bin by bin, row by row."""
  z = logits.astype(np.float64)
  p = np.exp(z - z.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  n, k = p.shape
  correct, confidence = p.argmax(1) == labels, p.max(1)
  ece = mce = 0.0
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      gap = abs(correct[inside].mean() - confidence[inside].mean())
      ece += inside.sum() / n * gap
      mce = max(mce, gap)
  return {
    "accuracy": correct.mean(),
    "nll": -np.log(p[np.arange(n), labels]).mean(),
    "brier": np.square(p - np.eye(k)[labels]).sum(1).mean(),
    "ece": ece,
    "mce": mce,
  }


def test_equals_a_float64_version():
  got = metrics(LOGITS, LABELS)
  for name, value in twin(LOGITS, LABELS).items():
    assert got[name] == pytest.approx(value, rel=2e-6), name


def test_always_certain_and_right_in_seven_of_ten():
  labels = np.array([0] * 7 + [1] * 3, np.int32)
  got = metrics(np.tile(np.array([[100.0, 0.0]], np.float32), (10, 1)), labels)
  assert got["accuracy"] == pytest.approx(0.7)
  assert got["ece"] == pytest.approx(0.3)
  assert got["mce"] == pytest.approx(0.3)
  # Three rows at distance (1 - 0)² + (0 - 1)² = 2 from their label, of ten.
  assert got["brier"] == pytest.approx(0.6)
  assert got["nll"] == pytest.approx(30.0)  # three rows with log-odds of 100
  np.testing.assert_array_equal(got["reliability/count"], [0] * 14 + [10])


def test_uniform_predictions():
  got = metrics(np.zeros((6, 4), np.float32), np.array([0, 1, 2, 3, 0, 0], np.int32))
  assert got["brier"] == pytest.approx(3 / 4)  # (K - 1) / K
  assert got["nll"] == pytest.approx(np.log(4))
  # The first class wins a tie: right in 3 of 6, confidence 1/4, which lies in bin ceil(3.75) - 1.
  assert got["accuracy"] == pytest.approx(0.5)
  assert got["ece"] == pytest.approx(0.25)
  assert got["reliability/count"][3] == 6


def test_a_calibrated_classifier_has_little_error():
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(100_000, 3)).astype(np.float32)
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = (rng.random((100_000, 1)) > probs.cumsum(1)).sum(1).clip(0, 2).astype(np.int32)
  assert metrics(logits, labels)["ece"] < 0.006


def test_identical_models_agree_fully():
  got = finalize(agreement(jnp.asarray(LOGITS), jnp.asarray(LOGITS)))
  assert (got["agreement"], got["forward_kl"], got["probability_loyalty"]) == (1.0, 0.0, 1.0)
  assert np.trace(got["agreement/matrix"]) == pytest.approx(1)


def test_agreement_of_two_rows_by_hand():
  student = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]], jnp.float32))
  teacher = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]], jnp.float32))
  got = finalize(agreement(student, teacher))
  # A tie goes to the first class, so both rows agree.
  assert got["agreement"] == 1.0
  kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
  assert got["forward_kl"] == pytest.approx(kl / 2, rel=1e-6)
  m = np.array([0.625, 0.375])
  halves = [np.sum(np.array(p) * np.log2(np.array(p) / m)) for p in ([0.75, 0.25], [0.5, 0.5])]
  assert got["probability_loyalty"] == pytest.approx(
    (1 - np.sqrt(sum(halves) / 2) + 1) / 2, rel=1e-6
  )


def test_opposite_and_certain_models_have_no_loyalty():
  got = finalize(agreement(jnp.array([[0.0, 1e4]]), jnp.array([[1e4, 0.0]])))
  assert got["agreement"] == 0.0
  assert got["probability_loyalty"] == pytest.approx(0.0, abs=1e-6)


def test_the_matrix_counts_teacher_by_student():
  pairs = agreement(jnp.asarray(LOGITS), jnp.asarray(TEACHER), jnp.asarray(WHERE))
  expected = np.zeros((5, 5))
  for told, own, counted in zip(TEACHER.argmax(1), LOGITS.argmax(1), WHERE, strict=True):
    expected[told, own] += counted
  np.testing.assert_array_equal(pairs["agreement/matrix"][0], expected)
  shares = finalize(pairs)["agreement/matrix"]
  np.testing.assert_allclose(shares, expected / WHERE.sum())


def test_no_matrix_for_very_many_classes():
  wide = jnp.zeros((2, 101))
  assert "agreement/matrix" not in agreement(wide, wide)


def test_merged_parts_equal_the_whole():
  whole = finalize(both(*map(jnp.asarray, (LOGITS, TEACHER, LABELS, WHERE))))
  total = {}
  for part in (slice(0, 32), slice(32, 64)):
    arrays = (jnp.asarray(x[part]) for x in (LOGITS, TEACHER, LABELS, WHERE))
    total = merge(total, both(*arrays))
  merged = finalize(total)
  assert merged.keys() == whole.keys()
  for name, value in whole.items():
    np.testing.assert_allclose(merged[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


def test_rows_that_do_not_count_change_nothing_even_if_not_finite():
  spoilt, other, labels = LOGITS.copy(), TEACHER.copy(), LABELS.copy()
  spoilt[~WHERE], other[~WHERE], labels[~WHERE] = np.nan, np.inf, 77
  got = finalize(both(*map(jnp.asarray, (spoilt, other, labels, WHERE))))
  kept = (x[WHERE] for x in (LOGITS, TEACHER, LABELS, WHERE))
  for name, value in finalize(both(*map(jnp.asarray, kept))).items():
    np.testing.assert_allclose(got[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


def test_unknown_labels_are_not_counted():
  labels = np.where(WHERE, LABELS, -1)
  assert metrics(LOGITS, labels)["nll"] == metrics(LOGITS, LABELS, WHERE)["nll"]


def test_a_label_beyond_the_classes_is_noticed():
  labels = LABELS.copy()
  labels[3] = 5
  got = metrics(LOGITS, labels)
  assert np.isnan(got["nll"]) and np.isnan(got["brier"])


def test_nothing_counted_gives_zeros():
  where = jnp.zeros(64, bool)
  pairs = both(jnp.asarray(LOGITS), jnp.asarray(TEACHER), jnp.asarray(LABELS), where)
  for name, value in finalize(pairs).items():
    np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=name)


def test_prefixed_names_get_their_own_calibration_error():
  pairs = classification(jnp.asarray(LOGITS), jnp.asarray(LABELS))
  got = finalize({f"teacher/{name}": pair for name, pair in pairs.items()})
  assert got["teacher/ece"] == finalize(pairs)["ece"]
  assert "ece" not in got
  assert isinstance(got["teacher/ece"], float)
  assert got["teacher/reliability/count"].sum() == 64


def test_bfloat16_is_computed_in_float32():
  halved = jnp.asarray(LOGITS).astype(jnp.bfloat16)
  got = classification(halved, jnp.asarray(LABELS))
  want = classification(halved.astype(jnp.float32), jnp.asarray(LABELS))
  for name, (num, _) in got.items():
    assert num.dtype == jnp.float32
    np.testing.assert_array_equal(num, want[name][0])


def test_sequences_equal_their_flattened_rows():
  args = [jnp.asarray(x) for x in (LOGITS, TEACHER, LABELS, WHERE)]
  shaped = [x.reshape((4, 16) + x.shape[1:]) for x in args]
  for name, (num, den) in both(*shaped).items():
    want = both(*args)[name]
    np.testing.assert_allclose(num, want[0], rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(den, want[1])


def test_jit_and_sharding_over_eight_devices_change_nothing():
  mesh = Mesh(np.array(jax.devices()), ("data",))
  assert mesh.size == 8
  rows = NamedSharding(mesh, PartitionSpec("data"))
  args = [jax.device_put(x, rows) for x in (LOGITS, TEACHER, LABELS, WHERE)]
  sharded = both(*args)
  for name, (num, den) in both(*map(jnp.asarray, (LOGITS, TEACHER, LABELS, WHERE))).items():
    np.testing.assert_allclose(sharded[name][0], num, rtol=2e-6, err_msg=name)
    np.testing.assert_array_equal(sharded[name][1], den)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(-50, 50), st.permutations(range(5)))
def test_a_shift_and_a_common_permutation_of_classes_change_nothing(seed, shift, order):
  rng = np.random.default_rng(seed)
  student, teacher = rng.normal(size=(2, 16, 5)).astype(np.float32)
  labels, where = rng.integers(0, 5, 16).astype(np.int32), np.ones(16, bool)
  order = np.array(order)
  moved = (student[:, order] + np.float32(shift), teacher[:, order], np.argsort(order)[labels])
  want = finalize(both(student, teacher, labels, where))
  got = finalize(both(moved[0], moved[1], moved[2].astype(np.int32), where))
  for name, value in want.items():
    if not name.startswith(("reliability", "agreement/")):
      assert got[name] == pytest.approx(value, rel=1e-4, abs=2e-5), name
  assert 0 <= want["ece"] <= want["mce"] <= 1
  assert 0 <= want["probability_loyalty"] <= 1


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x, y: classification(x, y[:3]), r"labels have shape \(3,\)"),
    (lambda x, y: classification(x, y, jnp.ones(3, bool)), r"where has shape \(3,\)"),
    (lambda x, y: classification(x, y, jnp.ones(64)), "dtype float32"),
    (lambda x, y: agreement(x, x[:, :4]), r"teacher_logits \(64, 4\)"),
  ],
)
def test_shapes_that_do_not_fit(call, message):
  with pytest.raises(KdjaxError, match=message):
    call(jnp.asarray(LOGITS), jnp.asarray(LABELS))


def test_top_k_counts_labels_among_the_likeliest():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 9)), jnp.bfloat16)
  labels = np.random.default_rng(1).integers(-1, 9, 50)
  where = np.random.default_rng(2).random(50) < 0.8
  ranks = np.argsort(np.argsort(-np.asarray(logits, np.float64), axis=-1), axis=-1)
  counted = where & (labels >= 0)
  for k in (1, 3, 5):
    run = jax.jit(lambda x, y, w, k=k: top_k_accuracy(x, y, w, k=k))
    spoiled = jnp.where(jnp.asarray(where)[:, None], logits, jnp.nan)
    found = finalize(run(spoiled, labels, where))
    wanted = np.mean(ranks[np.arange(50), labels][counted] < k)
    # Values that are equal in bfloat16 count as found.
    assert wanted <= found[f"top{k}_accuracy"] <= wanted + 0.1
  with pytest.raises(KdjaxError, match="k is 0"):
    top_k_accuracy(logits, labels, k=0)
  beyond = top_k_accuracy(jnp.zeros((1, 3)), jnp.array([3]))
  assert finalize(beyond) == {"top5_accuracy": 0.0}
