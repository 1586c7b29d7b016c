"""Hidden labels, subsets and held-out records."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data import arrays, hide_labels, labelled_only, split_off, subset
from kdjax.errors import KdjaxError


def source_of(labels):
  labels = np.asarray(labels)
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
  return arrays(images, labels, images, labels, num_classes=10).train


COUNTS = {0: 60, 1: 30, 2: 10}
SOURCE = source_of(np.random.default_rng(0).permutation(np.repeat(list(COUNTS), [60, 30, 10])))


def test_labels_are_kept_in_every_class_alike():
  hidden = hide_labels(SOURCE, 0.2, seed=0)
  assert len(hidden) == 100
  kept = hidden.labels[hidden.labels >= 0]
  np.testing.assert_array_equal(np.bincount(kept), [12, 6, 2])
  known = hidden.labels >= 0
  np.testing.assert_array_equal(hidden.labels[known], SOURCE.labels[known])
  assert hidden[int(np.flatnonzero(~known)[0])]["label"] == -1
  np.testing.assert_array_equal(hidden.read(np.arange(100))["label"], hidden.labels)
  np.testing.assert_array_equal(hidden.read(np.arange(100))["index"], np.arange(100))


def test_the_seed_fixes_the_choice():
  first = hide_labels(SOURCE, 0.2, seed=0).labels
  np.testing.assert_array_equal(first, hide_labels(SOURCE, 0.2, seed=0).labels)
  assert not np.array_equal(first, hide_labels(SOURCE, 0.2, seed=1).labels)


def test_a_rare_class_keeps_one_label_and_all_are_kept_at_1():
  assert np.bincount(labelled_only(hide_labels(SOURCE, 0.01, seed=0)).labels).min() == 1
  np.testing.assert_array_equal(hide_labels(SOURCE, 1.0, seed=0).labels, SOURCE.labels)


def test_labels_that_are_unknown_stay_so():
  source = source_of([-1, 0, -1, 0, 1, 1])
  half = hide_labels(source, 0.5, seed=3)
  np.testing.assert_array_equal(half.labels[[0, 2]], [-1, -1])
  np.testing.assert_array_equal(np.bincount(labelled_only(half).labels), [1, 1])


def test_labelled_only_keeps_record_ids():
  hidden = hide_labels(SOURCE, 0.2, seed=0)
  rest = labelled_only(hidden)
  batch = rest.read(np.arange(len(rest)))
  np.testing.assert_array_equal(batch["index"], np.flatnonzero(hidden.labels >= 0))
  np.testing.assert_array_equal(batch["label"], SOURCE.labels[batch["index"]])
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] * 255, batch["index"])


def test_split_off_parts_the_records():
  rest, held = split_off(SOURCE, 0.1, seed=0)
  np.testing.assert_array_equal(np.bincount(held.labels), [6, 3, 1])
  ids = [view.read(np.arange(len(view)))["index"] for view in (rest, held)]
  np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.arange(100))


def test_views_of_views():
  rest, _ = split_off(SOURCE, 0.1, seed=0)
  view = subset(rest, [5, 3])
  for row, position in enumerate([5, 3]):
    for key, value in view[row].items():
      np.testing.assert_array_equal(value, rest[position][key])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
  st.lists(st.integers(0, 4), min_size=12, max_size=80),
  st.floats(0.1, 0.8),
  st.integers(0, 2**31),
)
def test_share_is_right_in_all_and_in_each_class(labels, fraction, seed):
  source = source_of(labels)
  rest, held = split_off(source, fraction, seed)
  assert len(rest) + len(held) == len(labels)
  classes, counts = np.unique(labels, return_counts=True)
  for label, count in zip(classes, counts, strict=True):
    got = np.sum(held.labels == label)
    assert max(1, np.floor(count * fraction)) <= got <= max(1, np.ceil(count * fraction))
  if min(counts) * fraction >= 1:
    assert len(held) == round(fraction * len(labels))


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_fractions_out_of_range(fraction):
  with pytest.raises(KdjaxError, match="must lie in"):
    hide_labels(SOURCE, fraction, seed=0)
  with pytest.raises(KdjaxError, match="must lie in"):
    split_off(SOURCE, fraction, seed=0)


def test_nothing_left_to_train_on():
  with pytest.raises(KdjaxError, match="leaves none to train on"):
    split_off(source_of([0, 1, 2]), 0.5, seed=0)
