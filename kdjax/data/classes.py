"""Some classes of a data set as a data set of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.base import UNLABELLED, DataSet, Source
from kdjax.data.labels import View
from kdjax.errors import KdjaxError, within
from kdjax.resolve import resolve


def some_classes(*, images: str | Mapping[str, Any], classes: Sequence[int]) -> DataSet:
  """The records of some classes, whose labels count anew from 0 in the order given.

  Args:
    images: the data set of `kdjax.data` that has the images, such as "fashion_mnist", or that with
      its arguments, as {"name": "array_record_images", "path": FOLDER}.
    classes: at least two of its labels, each once.

  Returns:
    The data set. Records without a label are left out.

  Raises:
    KdjaxError: unknown images, or classes that do not exist or come twice.
  """
  from kdjax import data  # it names this file's function, too

  spec = {"name": images} if isinstance(images, str) else dict(images)
  own = {name: value for name, value in spec.items() if name != "name"}
  with within("config.data.images"):
    whole: DataSet = resolve(data, spec.get("name"), own, field="config.data.images.name")()
  fits = all(isinstance(c, int) and 0 <= c < whole.num_classes for c in classes)
  if not fits or len(set(classes)) < max(2, len(classes)):
    raise KdjaxError(
      f"config.data.classes = {list(classes)} must be at least two different labels of"
      f" {whole.name}, 0 .. {whole.num_classes - 1}"
    )
  number = np.full(whole.num_classes, UNLABELLED, np.int32)
  number[list(classes)] = np.arange(len(classes))

  def part(source: Source) -> View:
    labels = source.labels
    labels = np.where(labels >= 0, number[labels], np.int32(UNLABELLED))
    kept = np.flatnonzero(labels >= 0)
    return View(source, kept, labels[kept])

  return whole._replace(
    train=part(whole.train),
    test=part(whole.test),
    num_classes=len(classes),
    name=f"{whole.name}, classes {', '.join(map(str, classes))}",
  )
