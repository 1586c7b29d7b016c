"""RandAugment: each change against values worked by hand, and draws that decide alone."""

import numpy as np
import pytest

from kdjax.data import augment
from kdjax.data.rand_augment import CHANGES, FILL, sampled_at
from kdjax.errors import KdjaxError

BY_NAME = {change.__name__: change for change in CHANGES}
IMAGE = (np.arange(24, dtype=np.float32).reshape(4, 6, 1) + 1) / 25
COLOURS = np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)


def change(name, image, share=1.0, sign=1.0):
  return BY_NAME[name](image, share, sign)


def test_geometry_by_hand():
  same = sampled_at(IMAGE, np.array([[1.0, 0, 0], [0, 1, 0]]))
  np.testing.assert_allclose(same, IMAGE, atol=1e-6)
  # 0.45 of 6 columns at a share of 1 / 2.7 is one column: what lay right of a place is now there.
  left = change("_translate_x", IMAGE, share=1 / 2.7)
  np.testing.assert_allclose(left[:, :-1], IMAGE[:, 1:], atol=1e-6)
  np.testing.assert_allclose(left[:, -1], FILL, atol=1e-6)
  down = change("_translate_y", IMAGE, share=1 / 1.8, sign=-1.0)
  np.testing.assert_allclose(down[1:], IMAGE[:-1], atol=1e-6)
  np.testing.assert_allclose(down[0], FILL, atol=1e-6)
  # Three quarter turns by 30 degrees of a square's centre keep it; a whole turn keeps the image.
  square = COLOURS[:4, :4]
  turned = sampled_at(square, np.array([[0.0, 1, 0], [-1, 0, 0]]))
  np.testing.assert_allclose(turned, np.rot90(square), atol=1e-6)
  # Sheared by 0.3 a row, the rows above and below the centre go opposite ways.
  sheared = change("_shear_x", IMAGE)
  at = 2 + 0.3 * 0.5
  wanted = (1 - (at - 2)) * IMAGE[2, 2, 0] + (at - 2) * IMAGE[2, 3, 0]
  np.testing.assert_allclose(sheared[2, 2, 0], wanted, atol=1e-6)


def test_values_by_hand():
  np.testing.assert_allclose(change("_invert", IMAGE), 1 - IMAGE)
  np.testing.assert_allclose(
    change("_solarize", IMAGE, 0.5), np.where(IMAGE < 0.5, IMAGE, 1 - IMAGE)
  )
  added = change("_solarize_add", np.full((1, 1, 1), 0.25, np.float32))
  np.testing.assert_allclose(added, 0.25 + 110 / 255, atol=1e-6)
  np.testing.assert_allclose(
    change("_posterize", np.array([[[0.3]], [[0.9]], [[1.0]]], np.float32), 0.5).ravel(),
    [0.25, 0.75, 0.75],  # two bits
  )
  contrasted = change("_auto_contrast", COLOURS)
  np.testing.assert_allclose(contrasted.min((0, 1)), 0, atol=1e-6)
  np.testing.assert_allclose(contrasted.max((0, 1)), 1, atol=1e-6)
  flat = np.full((3, 3, 1), 0.4, np.float32)
  for name in ("_auto_contrast", "_equalize", "_contrast", "_sharpness"):
    np.testing.assert_allclose(change(name, flat, 0.3), flat, atol=1e-6)
  np.testing.assert_allclose(change("_brightness", flat, 0.5, -1.0), 0.4 * 0.55, atol=1e-6)
  levels = change("_equalize", (np.arange(4).reshape(2, 2, 1) / 255).astype(np.float32))
  np.testing.assert_allclose(levels.ravel(), [0, 1 / 3, 2 / 3, 1], atol=1e-6)
  np.testing.assert_array_equal(change("_color", IMAGE), IMAGE)
  grey = COLOURS @ np.array([0.299, 0.587, 0.114], np.float32)
  paler = change("_color", COLOURS, 0.5, -1.0)
  np.testing.assert_allclose(paler, grey[..., None] * 0.45 + COLOURS * 0.55, atol=1e-6)


@pytest.mark.parametrize("image", [IMAGE, COLOURS], ids=["grey", "colours"])
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_change_keeps_shape_and_range(name, image, sign):
  before = image.copy()
  for share in (0.0, 0.4, 1.0):
    out = change(name, image, share, sign)
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1
  np.testing.assert_array_equal(image, before)


def test_the_draws_decide_alone():
  part = augment.rand_augment(probability=1.0)
  example = {"image": COLOURS, "label": np.int32(1), "index": np.int32(0)}
  images = [part(example, np.random.default_rng(seed))["image"] for seed in (0, 0, 1)]
  np.testing.assert_array_equal(images[0], images[1])
  assert not np.array_equal(images[0], images[2])
  assert images[0].dtype == np.float32
  never = augment.rand_augment(probability=0.0)
  np.testing.assert_array_equal(never(example, np.random.default_rng(0))["image"], COLOURS)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"layers": 0}, "layers is 0"),
    ({"magnitude": 11}, "magnitude is 11"),
    ({"spread": -1}, "spread is -1"),
    ({"probability": 2}, "probability is 2"),
  ],
)
def test_arguments_out_of_range(arguments, message):
  with pytest.raises(KdjaxError, match=f"rand_augment: {message}"):
    augment.rand_augment(**arguments)
