"""Augmentations: what they do to an image, and that only (seed, epoch, record) decides."""

import pickle

import numpy as np
import pytest

from kdjax.data import augment
from kdjax.data.base import unstack
from kdjax.errors import KdjaxError

IMAGE = np.arange(1, 31, dtype=np.float32).reshape(6, 5, 1) / 30


def example(image=IMAGE):
  return {"image": image, "label": np.int32(3), "index": np.int32(7)}


def run(part, seed):
  return part(example(), np.random.default_rng(seed))["image"]


def test_shift_moves_by_up_to_its_pixels_and_fills_with_zeros():
  padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
  moves = {
    padded[2 - down : 8 - down, 2 - right : 7 - right].tobytes(): (down, right)
    for down in range(-2, 3)
    for right in range(-2, 3)
  }
  seen = {moves[run(augment.shift(pixels=2), seed).tobytes()] for seed in range(400)}
  assert len(seen) == 25


def test_shift_beyond_the_frame_leaves_nothing():
  images = [run(augment.shift(pixels=50), seed) for seed in range(20)]
  assert all(image.shape == IMAGE.shape for image in images)
  assert any(not image.any() for image in images)


def test_flip_mirrors_left_and_right_with_its_probability():
  np.testing.assert_array_equal(run(augment.flip(probability=1.0), 0), IMAGE[:, ::-1])
  np.testing.assert_array_equal(run(augment.flip(probability=0.0), 0), IMAGE)
  flipped = [not np.array_equal(run(augment.flip(), seed), IMAGE) for seed in range(400)]
  assert 160 < sum(flipped) < 240


def test_cutout_blanks_one_square_and_leaves_its_input_alone():
  before = IMAGE.copy()
  for seed in range(50):
    gone = run(augment.cutout(size=3), seed)[..., 0] == 0
    rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
    assert 1 <= len(rows) <= 3 and 1 <= len(columns) <= 3
    assert gone.sum() == len(rows) * len(columns)
    assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
  np.testing.assert_array_equal(IMAGE, before)


def test_compose_uses_one_generator_after_the_other():
  parts = augment.shift(pixels=1), augment.flip(probability=0.5)
  rng = np.random.default_rng(4)
  expected = parts[1](parts[0](example(), rng), rng)["image"]
  np.testing.assert_array_equal(run(augment.compose(*parts), 4), expected)


def test_label_and_record_id_stay():
  part = augment.compose(augment.shift(), augment.flip(), augment.cutout(size=2))
  out = part(example(), np.random.default_rng(0))
  assert (out["label"], out["index"]) == (3, 7)
  assert out["image"].dtype == np.float32


def test_a_batch_is_augmented_record_by_record():
  part = augment.compose(augment.shift(), augment.cutout(size=2))
  ids, epochs = np.array([4, 0, 4]), np.array([0, 2, 1])
  batch = {
    "image": np.stack([IMAGE] * 3),
    "label": np.zeros(3, np.int32),
    "index": ids.astype(np.int32),
  }
  out = augment.augment_rows(unstack(batch), part, seed=9, epochs=epochs)
  for row in range(3):
    rng = np.random.default_rng((9, int(epochs[row]), int(ids[row])))
    np.testing.assert_array_equal(out["image"][row], part(example(), rng)["image"])
  assert not np.array_equal(out["image"][0], out["image"][2])


def test_augmentations_can_be_sent_to_reader_processes():
  part = augment.compose(augment.shift(), augment.flip(), augment.cutout())
  assert pickle.loads(pickle.dumps(part)) == part


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: augment.shift(pixels=0), "shift: pixels is 0"),
    (lambda: augment.cutout(size=-1), "cutout: size is -1"),
    (lambda: augment.flip(probability=1.1), "flip: probability is 1.1"),
  ],
)
def test_arguments_out_of_range(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()


def test_the_second_view_has_augmentations_of_its_own():
  parts = [{"name": "cutout", "size": 3}]
  both = augment.compose(augment.two_views(strong=parts), augment.flip(probability=1.0))
  out = both(example(), np.random.default_rng(0))
  np.testing.assert_array_equal(out["image"], IMAGE[:, ::-1])
  wanted = augment.cutout(size=3)(example(), np.random.default_rng(0))["image"]
  np.testing.assert_array_equal(out["second_image"], wanted)
  assert out["label"] == 3


@pytest.mark.parametrize(
  ("strong", "message"),
  [
    ([{"name": "shfit"}], "'shfit' does not exist"),
    ([{"name": "mixup"}], "each must name an augmentation of one image"),
    ([{"size": 3}], "each must name an augmentation of one image"),
  ],
)
def test_a_second_view_of_what_does_not_exist_is_refused(strong, message):
  with pytest.raises(KdjaxError, match=message):
    augment.two_views(strong=strong)


def test_mixup_adds_the_next_row_and_keeps_the_larger_share():
  images = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
  batch = {"image": images, "label": np.arange(6), "index": np.arange(6)}
  mixture = augment.compose(augment.flip(probability=1.0), augment.mixup())
  out = augment.augment_rows(unstack(batch), mixture, seed=0, epochs=np.zeros(6, int))
  np.testing.assert_array_equal(out["label"], np.arange(5))
  flipped = images[:, :, ::-1]
  shares = []
  for i in range(5):
    step = flipped[i] - flipped[i + 1]
    share = np.sum((out["image"][i] - flipped[i + 1]) * step) / np.sum(step**2)
    np.testing.assert_allclose(out["image"][i], flipped[i + 1] + share * step, atol=1e-6)
    shares.append(share)
  assert min(shares) >= 0.5 and max(shares) <= 1 and np.std(shares) > 0.01


def test_mixup_comes_last_and_alpha_is_positive():
  with pytest.raises(KdjaxError, match="mixup must be the last"):
    augment.compose(augment.mixup(), augment.flip())
  with pytest.raises(KdjaxError, match="mixup: alpha is 0"):
    augment.mixup(alpha=0)
