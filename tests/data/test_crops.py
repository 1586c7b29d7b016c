"""Images of any size, cut to one: where from, what values, and by whom."""

import pickle

import numpy as np
import pytest

from kdjax.data import augment
from kdjax.data.base import RecordSource
from kdjax.data.crops import RandomResizedCrop, centre, resized
from kdjax.data.labels import hide_labels, subset
from kdjax.data.pipeline import evaluation_batches, training_stream
from kdjax.errors import KdjaxError

RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (48, 1, 3))


def decode(record):
  height, width, label = record
  return np.full((height, width, 3), 20 * label, np.uint8), label


RECORDS = [(20 + 3 * i, 40 - 2 * i, i % 5) for i in range(10)]
SOURCE = RecordSource(RECORDS, decode, (16, 16, 3), 5, "wide", lambda image: centre(image, 16))


def test_a_part_is_what_the_image_holds_there():
  whole = resized(RAMP, (0, 0, 64, 48), 32)
  np.testing.assert_allclose(whole[:, :, 0], np.tile(np.linspace(0, 1, 32), (32, 1)), atol=0.02)
  right = resized(RAMP, (32, 0, 64, 48), 32)
  assert abs(right[5, 0, 1] - 0.5) < 0.02 and right[:, -1].min() > 0.97
  assert whole.dtype == np.float32 and whole.min() >= 0 and whole.max() <= 1
  bytes_of = (RAMP * 255).astype(np.uint8)
  np.testing.assert_allclose(resized(bytes_of, (0, 0, 64, 48), 32), whole, atol=1 / 255)


def test_the_centre_is_224_of_256_of_the_shorter_side():
  middle = centre(RAMP, 42)  # 48 * 224 / 256 = 42 pixels of 64, so no pixel changes
  np.testing.assert_allclose(middle, RAMP[3:45, 11:53], atol=1e-6)


@pytest.mark.parametrize("height, width", [(30, 50), (50, 30), (8, 100)])
def test_random_parts_lie_in_the_image_with_the_areas_and_ratios_asked_for(height, width):
  crop = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3))
  rng = np.random.default_rng(0)
  boxes = np.array([crop.box(height, width, rng) for _ in range(500)])
  left, top, right, bottom = boxes.T
  assert (left >= 0).all() and (top >= 0).all()
  assert (right <= width).all() and (bottom <= height).all()
  ratio, area = (right - left) / (bottom - top), (right - left) * (bottom - top) / (height * width)
  assert ratio.min() > 0.6 and ratio.max() < 1.6  # of whole pixels
  if height > 8:
    assert ratio.min() < 0.85 and ratio.max() > 1.15
    assert area.min() < 0.12 and area.max() > 0.6


def test_training_crops_what_is_stored_and_evaluation_the_centre():
  crop = augment.random_resized_crop(size=16)
  view = hide_labels(subset(SOURCE, np.arange(9, -1, -1)), 0.5, seed=0)
  for source in (SOURCE, view):
    batch = next(training_stream(source, batch_size=10, seed=3, augment=crop, threads=0))
    assert batch["image"].shape == (10, 16, 16, 3)
    shades = np.array([20 * RECORDS[i][2] / 255 for i in batch["index"]], np.float32)
    np.testing.assert_allclose(batch["image"].mean((1, 2, 3)), shades, atol=1e-6)
  assert set(np.unique(batch["label"])) == {-1, 0, 1, 2, 3, 4}
  (held,) = evaluation_batches(SOURCE, batch_size=10, threads=0)
  assert held["image"].shape == (10, 16, 16, 3)


def test_a_crop_is_of_the_seed_the_epoch_and_the_record_alone():
  crop, size = augment.random_resized_crop(size=8), (32, 32, 3)
  noise = np.random.default_rng(0).random((10, *size)).astype(np.float32)
  source = RecordSource(noise, lambda image: (image, 0), size, 1, "noise")
  streams = [training_stream(source, batch_size=b, seed=1, augment=crop) for b in (10, 5)]
  whole = next(streams[0])
  parts = [next(streams[1]) for _ in range(2)]
  np.testing.assert_array_equal(whole["image"], np.concatenate([p["image"] for p in parts]))
  again = next(streams[0])
  order = [list(whole["index"]).index(i) for i in again["index"]]
  assert (np.abs(again["image"] - whole["image"][order]).max((1, 2, 3)) > 0.1).all()
  assert pickle.loads(pickle.dumps(crop)) == crop


def test_erasing_puts_noise_in_place_of_a_part():
  erase = augment.random_erasing(probability=1.0)
  image = np.full((32, 32, 3), 0.5, np.float32)
  shares = []
  for seed in range(50):
    out = erase({"image": image, "index": 0}, np.random.default_rng(seed))["image"]
    changed = (out != image).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99  # one part
    assert out.min() >= 0 and out.max() <= 1
    shares.append(changed.mean())
  assert 0.01 < min(shares) < 0.06 and 0.2 < max(shares) < 0.36
  assert (image == 0.5).all()
  never = augment.random_erasing(probability=0.0)
  assert never({"image": image}, np.random.default_rng(0))["image"] is image


def test_what_cannot_be_cut_is_told():
  with pytest.raises(KdjaxError, match=r"area is \(0, 2\)"):
    augment.random_resized_crop(area=(0, 2))
  with pytest.raises(KdjaxError, match="size is 0"):
    augment.random_resized_crop(size=0)
  with pytest.raises(KdjaxError, match="probability is 2"):
    augment.random_erasing(probability=2)
  grey = RecordSource([0], lambda _: (np.zeros((20, 20, 1), np.uint8), 0), (8, 8, 3), 1, "grey",
                      lambda image: centre(image, 8))  # fmt: skip
  with pytest.raises(KdjaxError, match=r"grey, record 0: .*\(20, 20, 1\).* 3 channels"):
    grey.read(np.array([0]))
