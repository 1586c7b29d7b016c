"""Damaged images: the official ones, and a data set that holds copies of its test images."""

from pathlib import Path

import numpy as np
import pytest

from kdjax.data import augment, corrupted, digits, evaluation_batches
from kdjax.data.corruptions import FOR_TEST, FOR_TRAINING, KINDS, SEVERITIES, corrupt
from kdjax.errors import KdjaxError

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "corruptions.npz"
NOISE = ("gaussian_noise", "shot_noise", "speckle_noise", "impulse_noise")


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_damage_is_the_official_one(reference, kind, size):
  image = reference[size].astype(np.float32) / 255
  wanted = {k: v for k, v in reference.items() if k.startswith(f"{size}/{kind}/")}
  assert len(wanted) == (0 if (kind, size) == ("pixelate", "large") else 3)
  for name, damaged in wanted.items():
    # The official code draws from NumPy's global generator but for impulses.
    legacy = np.random.RandomState(40) if kind != "impulse_noise" else np.random.default_rng(40)
    own = corrupt(image, kind, int(name[-1]), legacy)[::3, ::3]
    # Pillow rounds to bytes after each of two resizings.
    atol = 1.01 / 255 if kind == "pixelate" else 1e-5
    np.testing.assert_allclose(own, damaged, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (5, 9, 2)])
def test_damage_grows_with_severity_and_keeps_shape_and_range(kind, shape):
  image = np.random.default_rng(0).random(shape).astype(np.float32)
  away = []
  for severity in SEVERITIES:
    own = corrupt(image, kind, severity, np.random.default_rng(1))
    assert own.shape == shape and own.dtype == np.float32
    assert own.min() >= 0 and own.max() <= 1
    away.append(np.abs(own - image).mean())
  assert away[0] < away[-1]
  # More photons draw other noise, so that a small image may be nearer at the next severity.
  assert kind in (*NOISE, "pixelate", "defocus_blur") or away == sorted(away)


def test_constant_images_have_nothing_to_blur():
  image = np.full((9, 9, 1), 0.3, np.float32)
  for kind in ("gaussian_blur", "defocus_blur", "contrast", "pixelate"):
    np.testing.assert_allclose(corrupt(image, kind, 5, None), image, atol=1e-6)
  np.testing.assert_allclose(corrupt(image, "brightness", 5, None), image + 0.3, atol=1e-6)


def test_copies_follow_the_test_images_and_come_the_same_again():
  kinds, severities = ("contrast", "gaussian_noise"), (1, 5)
  data = corrupted(images="digits", kinds=kinds, severities=severities, copied=7)
  clean = digits()
  assert data.corruptions == kinds and len(data.test) == 597 + 7 * 4
  np.testing.assert_array_equal(data.train.labels, clean.train.labels)
  whole = data.test.read(np.arange(len(data.test)))
  np.testing.assert_array_equal(whole["image"][:597], clean.test.read(np.arange(597))["image"])
  np.testing.assert_array_equal(whole["label"], data.test.labels)
  np.testing.assert_array_equal(np.bincount(whole["corruption"]), [597, 14, 14])
  # A copy is that of the record that it names, under whatever else is asked for beside it.
  row = 597 + 7 * 3 + 2
  index = whole["index"][row]
  assert whole["corruption"][row] == 2 and whole["label"][row] == clean.test.labels[index]
  np.testing.assert_array_equal(data.test[row]["image"], whole["image"][row])
  alone = corrupted(images="digits", kinds=kinds[1:], severities=(5,), copied=7)
  np.testing.assert_array_equal(alone.test[597 + 2]["image"], whole["image"][row])
  other = corrupted(images="digits", kinds=kinds[1:], severities=(5,), copied=7, seed_of_noise=1)
  assert (other.test[597 + 2]["image"] != whole["image"][row]).any()


def test_batches_of_evaluation_say_what_is_damaged_and_padded():
  data = corrupted(images="digits", kinds=("contrast",), severities=(1,), copied=10)
  batches = list(evaluation_batches(data.test, batch_size=200))
  mask = np.concatenate([batch["mask"] for batch in batches])
  corruption = np.concatenate([batch["corruption"] for batch in batches])
  assert mask.sum() == 607 and corruption[mask].sum() == 10 and not corruption[~mask].any()


def test_training_damage_is_drawn_for_each_image():
  change = augment.corrupt(probability=0.5)
  image = digits().train[0]["image"]
  rngs = [np.random.default_rng(i) for i in range(40)]
  same = [np.array_equal(change({"image": image}, rng)["image"], image) for rng in rngs]
  assert 10 < sum(same) < 30
  assert not set(FOR_TRAINING) & set(FOR_TEST) and {*FOR_TRAINING, *FOR_TEST} == set(KINDS)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"kinds": ("fog",)}, "kinds holds 'fog', which does not exist"),
    ({"kinds": ("contrast", "contrast")}, "must name at least one, and each once"),
    ({"severities": ()}, "severities = .* must name at least one"),
    ({"severities": (6,)}, "severities holds 6"),
    ({"copied": 598}, r"copied = 598 must lie in 1 \.\. 597, the test images of digits"),
    ({"images": "digit"}, r"config.data.images.name = 'digit' does not exist"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  with pytest.raises(KdjaxError, match=message):
    corrupted(**{"images": "digits"} | changed)


def test_a_wrong_augmentation_is_told():
  with pytest.raises(KdjaxError, match="kinds holds 'contrst'"):
    augment.corrupt(kinds=("contrst",))
  with pytest.raises(KdjaxError, match=r"probability is 2; it must lie in \[0, 1\]"):
    augment.corrupt(probability=2)
