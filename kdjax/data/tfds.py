"""Image data sets that TensorFlow Datasets prepared, read without TensorFlow."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.base import DataSet, RecordSource
from kdjax.data.crops import centre
from kdjax.errors import KdjaxError


def tfds_images(
  *,
  dataset: str,
  path: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
  size: int | None = None,
) -> DataSet:
  """An image classification set that TensorFlow Datasets has prepared in random-access form.

  Args:
    dataset: its name there, such as "cifar10" or "cifar10:3.0.2"; for messages only where `path`
      is one prepared version.
    path: the TFDS data folder, or the folder of one prepared version (the one that holds
      dataset_info.json); where None, TFDS's own default.
    train_split: in TFDS's notation, such as "train[:90%]".
    test_split: likewise.
    size: images of any size are cut to so many pixels square: the middle, 224/256 of the shorter
      side; for training see `kdjax.data.augment.random_resized_crop`. None where all are of one
      size and stay as they are.

  Returns:
    The data set: features `image` ([H, W, C]) and `label`.

  Raises:
    KdjaxError: a set that is unknown, not prepared, stored as TFRecord (which has no random access)
      or without these features.
  """
  if size is not None and size < 1:
    raise KdjaxError(f"tfds_images: size is {size}; it must be at least 1")
  # Imported here: it takes a third of a second that other data need not pay for.
  import tensorflow_datasets as tfds

  remedy = (
    "prepare it once with tfds.builder(name, data_dir=..., file_format='array_record')"
    ".download_and_prepare() and set config.data.path to that data_dir"
  )
  try:
    if path is not None and (Path(path) / "dataset_info.json").is_file():
      builder = tfds.builder_from_directory(path)
    else:
      builder = tfds.builder(dataset, data_dir=path)
    splits = (train_split, test_split)
    sides = [builder.as_data_source(split=split) for split in splits]
    undecoded = {"image": tfds.decode.SkipDecoding()}
    unread = [builder.as_data_source(split=split, decoders=undecoded) for split in splits]
  except (AssertionError, NotImplementedError, OSError, ValueError) as error:
    if isinstance(error, NotImplementedError):
      reason = "it is stored as TFRecord, or not prepared; random access needs array_record"
    else:  # TFDS lists everything it knows after the first line
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    where = f" in {path}" if path is not None else ""
    raise KdjaxError(
      f"the TFDS data set {dataset!r}{where} cannot be read: {reason}; {remedy}"
    ) from None
  features = builder.info.features
  if not {"image", "label"} <= set(features):
    raise KdjaxError(
      f"the TFDS data set {dataset!r} has the features {sorted(features)}; image and label are"
      " wanted"
    )
  for split, side in zip((train_split, test_split), sides, strict=True):
    if not len(side):
      raise KdjaxError(f"the split {split!r} of the TFDS data set {dataset!r} is empty")
  # The declared shape may leave sizes open, so the first image decides.
  shape = np.shape(sides[0][0]["image"])
  cut = None
  if size is not None:
    shape = (size, size, shape[-1])
    cut = functools.partial(centre, size=size)
  num_classes = features["label"].num_classes
  train, test = (
    RecordSource(side, _decode, shape, num_classes, f"{dataset} ({split})", cut, labels)
    for split, side, labels in zip(splits, sides, unread, strict=True)
  )
  return DataSet(train, test, num_classes, shape, dataset)


def _decode(record: dict[str, Any]) -> tuple[np.ndarray, int]:
  return np.asarray(record["image"]), int(record["label"])
