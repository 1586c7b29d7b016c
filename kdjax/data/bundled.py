"""Data that an installed package brings along: no download, no path."""

from __future__ import annotations

import numpy as np

from kdjax.data.base import ArraySource, DataSet, arrays
from kdjax.data.labels import split_off
from kdjax.errors import KdjaxError


def digits(*, test_size: int = 597, seed: int = 0) -> DataSet:
  """The 1,797 handwritten digits of 8x8 pixels that scikit-learn holds.

  Args:
    test_size: records of the test split, stratified; the other ones (1,200) are for training.
    seed: which records are for testing.

  Returns:
    The data set, 10 classes, images [8, 8, 1].

  Raises:
    KdjaxError: a test split that is empty or leaves nothing.
  """
  from sklearn.datasets import load_digits  # half a second and 75 MB, for these data alone

  bunch = load_digits()
  images = (bunch.images[..., None] / 16).astype(np.float32)
  labels = bunch.target.astype(np.int32)
  if not 0 < test_size < len(labels):
    raise KdjaxError(
      f"config.data.test_size = {test_size} must lie between 1 and {len(labels) - 1}"
    )
  everything = ArraySource(images, labels)
  rest, held = (v.positions for v in split_off(everything, test_size / len(labels), seed))
  return arrays(
    images[rest], labels[rest], images[held], labels[held], num_classes=10, name="digits"
  )
