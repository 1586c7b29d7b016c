"""Sources in memory and the checks on what they are made of."""

import numpy as np
import pytest

from kdjax.data import ArraySource, Source, arrays, digits
from kdjax.errors import KdjaxError

IMAGES = np.arange(2 * 3 * 3 * 1, dtype=np.uint8).reshape(2, 3, 3, 1)
LABELS = np.array([1, 0])


def test_bytes_become_floats_between_0_and_1():
  source = ArraySource(np.array([[[[0], [51], [255]]]], np.uint8), np.array([4], np.int32))
  record = source[0]
  np.testing.assert_array_equal(record["image"][0, :, 0], np.array([0, 0.2, 1], np.float32))
  assert record["image"].dtype == np.float32
  assert (record["label"], record["index"]) == (4, 0)


def test_reading_many_equals_reading_each():
  source = arrays(IMAGES, LABELS, IMAGES, LABELS).train
  many = source.read(np.array([1, 0, 1]))
  for row, position in enumerate([1, 0, 1]):
    for key, value in source[position].items():
      np.testing.assert_array_equal(many[key][row], value)
      assert many[key].dtype == value.dtype


def test_arrays_infers_classes_and_adds_a_channel():
  data = arrays(IMAGES[..., 0] / 255.0, LABELS, IMAGES / 255.0, np.array([2, -1]))
  assert data.num_classes == 3
  assert data.image_shape == (3, 3, 1)
  assert data.train[0]["image"].dtype == np.float32


@pytest.mark.parametrize(
  ("images", "labels", "message"),
  [
    (IMAGES, LABELS[:1], "2 images and labels of shape"),
    (IMAGES[0], LABELS, r"2 labels|images"),
    (IMAGES[..., None], LABELS, r"\[N, H, W, C\] is wanted"),
    (IMAGES, LABELS.astype(float), "integers are wanted"),
    (IMAGES, LABELS + 1, r"0 \.\. 1 is wanted"),
    (IMAGES, LABELS - 2, r"0 \.\. 1 is wanted"),
    (IMAGES.astype(np.int64), LABELS, "uint8 or floats are wanted"),
    (IMAGES.astype(np.float32), LABELS, r"\[0, 1\] is wanted"),
    (np.full(IMAGES.shape, np.nan), LABELS, r"\[0, 1\] is wanted"),
  ],
)
def test_arrays_refuses_what_does_not_fit(images, labels, message):
  with pytest.raises(KdjaxError, match=message):
    arrays(images, labels, IMAGES, LABELS, num_classes=2)


def test_digits_are_split_by_class_and_fixed_by_the_seed():
  data = digits()
  assert (len(data.train), len(data.test)) == (1200, 597)
  assert (data.num_classes, data.image_shape, data.name) == (10, (8, 8, 1), "digits")
  assert data.train.images.min() == 0 and data.train.images.max() == 1
  # The whole set has 174 to 183 of each class; a stratified third of that is 57.8 to 60.8.
  counts = np.bincount(data.test.labels)
  assert counts.min() >= 57 and counts.max() <= 61
  np.testing.assert_array_equal(digits().test.images, data.test.images)
  assert not np.array_equal(digits(seed=1).test.images, data.test.images)
  rows = {image.tobytes() for image in data.train.images}
  assert not any(image.tobytes() in rows for image in data.test.images)


def test_digits_refuses_an_empty_split():
  with pytest.raises(KdjaxError, match=r"config\.data\.test_size = 0"):
    digits(test_size=0)
  with pytest.raises(KdjaxError, match="1797"):
    digits(test_size=1797)


def test_a_source_is_what_grain_reads():
  source: Source = arrays(IMAGES, LABELS, IMAGES, LABELS).train
  grain = pytest.importorskip("grain")
  assert isinstance(source, grain.sources.RandomAccessDataSource)
