"""Composed scenes: the label of a place is that of what lies there."""

import numpy as np
import pytest

from kdjax.data import digits, scenes
from kdjax.errors import KdjaxError

GIVEN = {"images": "digits", "side": 16, "items": 2, "shrink": 1, "train_scenes": 20}
GIVEN |= {"test_scenes": 10, "stride": 1, "noise": 0.1}


def test_places_are_labelled_by_what_lies_there():
  data = scenes(**GIVEN)
  assert data.num_classes == 11 and data.places == (16, 16) and data.image_shape == (16, 16, 1)
  batch = data.train.read(np.arange(20))
  image, label = batch["image"][..., 0], batch["label"].reshape(20, 16, 16)
  # Items are brighter than the threshold and the ground is darker.
  np.testing.assert_array_equal(label > 0, image > 0.2)
  assert batch["label"].dtype == np.int32 and batch["label"].shape == (20, 256)
  assert {0} < set(np.unique(label)) <= set(range(11))
  for scene in label:
    assert 1 <= len(np.unique(scene[scene > 0])) <= 2
  # Every item is a training image: what is seen of one alone in a scene is part of such a one.
  alone = next(i for i, scene in enumerate(label) if len(np.unique(scene)) == 2)
  own = digits().train
  values = np.unique(own.read(np.arange(len(own)))["image"])
  assert np.isin(image[alone][label[alone] > 0], values).all()


def test_scenes_are_the_same_again_and_labels_follow_the_stride():
  data, again, other = scenes(**GIVEN), scenes(**GIVEN), scenes(**GIVEN, seed_of_scenes=1)
  np.testing.assert_array_equal(data.test[3]["image"], again.test[3]["image"])
  assert (data.test[3]["image"] != other.test[3]["image"]).any()
  coarse = scenes(**GIVEN | {"stride": 4})
  assert coarse.places == (4, 4)
  fine = data.test[3]["label"].reshape(16, 16)[::4, ::4]
  np.testing.assert_array_equal(coarse.test[3]["label"].reshape(4, 4), fine)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"shrink": 3}, "shrink = 3 must divide the items' sides, 8 and 8"),
    ({"side": 7}, "no more than config.data.side = 7"),
    ({"stride": 3}, "stride = 3 must divide config.data.side = 16"),
    ({"items": 0}, "items = 0"),
    ({"images": "digit"}, "config.data.images.name = 'digit' does not exist"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  with pytest.raises(KdjaxError, match=message):
    scenes(**GIVEN | changed)
