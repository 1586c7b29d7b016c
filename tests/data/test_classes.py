"""Some classes of a data set, counted anew."""

import numpy as np
import pytest

from kdjax.data import digits, some_classes
from kdjax.errors import KdjaxError


def test_records_of_the_classes_alone_with_labels_from_0():
  whole, data = digits(), some_classes(images="digits", classes=(7, 2))
  assert data.num_classes == 2 and data.image_shape == whole.image_shape
  for part, source in ((data.train, whole.train), (data.test, whole.test)):
    records = part.read(np.arange(len(part)))
    np.testing.assert_array_equal(np.sort(np.unique(records["label"])), [0, 1])
    counts = [(source.labels == label).sum() for label in (7, 2)]
    np.testing.assert_array_equal(np.bincount(part.labels), counts)
    first = part[0]
    np.testing.assert_array_equal(first["image"], records["image"][0])
    again = source.read(np.flatnonzero(np.isin(source.labels, (7, 2))))
    np.testing.assert_array_equal(again["label"] == 2, records["label"] == 1)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"classes": (1,)}, r"classes = \[1\] must be at least two different labels of digits"),
    ({"classes": (1, 1)}, "must be at least two different labels"),
    ({"classes": (1, 10)}, r"0 \.\. 9"),
    ({"images": "digit"}, "config.data.images.name = 'digit' does not exist"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  with pytest.raises(KdjaxError, match=message):
    some_classes(**{"images": "digits", "classes": (0, 1)} | changed)
