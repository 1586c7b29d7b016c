"""What a data set is: two sources of labelled images with random access."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kdjax.errors import KdjaxError, reading

Example = dict[str, np.ndarray]
UNLABELLED = -1


class Source(Protocol):
  """Records by position. Also a Grain random access source.

  A record is a dict: `image` float32 [H, W, C] in [0, 1], `label` int32 (-1 where unknown), `index`
  int32, the record's id in its data set, kept when records are selected or shuffled.
  """

  @property
  def labels(self) -> np.ndarray:
    """int32 [N], without reading images where that is possible."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, position: int) -> Example: ...

  def read(self, positions: np.ndarray) -> Example:
    """Several records, stacked along a new first axis."""
    ...

  # A source whose images are cut to one size has `as_stored(positions)` too: a list of the records
  # with their images as they are. See `kdjax.data.augment.records_for`.


class Span(NamedTuple):
  """One example in a row of several, as `kdjax.signals` looks it up.

  Attributes:
    key: 16 bytes, of its content.
    start: its first position.
    stop: one past its last.
  """

  key: bytes
  start: int
  stop: int


class DataSet(NamedTuple):
  """A data set for classification.

  Attributes:
    train: records to learn from.
    test: records to evaluate on.
    num_classes: labels are 0 .. num_classes - 1.
    image_shape: (height, width, channels).
    name: for messages and reports.
    class_texts: of each class in tokens, rows of equal length; () where classes have no names.
    vocab: number of tokens.
    novel: the classes whose labels are held out; those of `train` may have none.
    places: (rows, columns) of label maps; then labels are int32 [N, rows * columns], row by row. ()
      where images have one label each.
    corruptions: kinds of damage that copies of test images have; see `kdjax.data.corrupted`.
  """

  train: Source
  test: Source
  num_classes: int
  image_shape: tuple[int, int, int]
  name: str
  class_texts: tuple[tuple[int, ...], ...] = ()
  vocab: int = 0
  novel: tuple[int, ...] = ()
  corruptions: tuple[str, ...] = ()
  places: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Records held in memory.

  Attributes:
    images: [N, H, W, C]; float32 in [0, 1], or uint8, which is divided by 255 when read.
    labels: int32 [N].
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, position: int) -> Example:
    return {
      "image": _unit_range(self.images[position]),
      "label": self.labels[position],
      "index": np.int32(position),
    }

  def read(self, positions: np.ndarray) -> Example:
    return {
      "image": _unit_range(self.images[positions]),
      "label": self.labels[positions],
      "index": positions.astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class RecordSource:
  """Records in files, each checked when it is read.

  Attributes:
    records: a random access source; `__getitems__` is used where it exists.
    decode: turns a raw record into (image, label).
    image_shape: what every image must have.
    num_classes: what every label must be below.
    where: path or name, for messages.
    cut: makes an image of any size one of `image_shape`; None where all have it.
    labels_of: the same records, whose `label` is read without the image; None where it cannot be.
  """

  records: Any
  decode: Callable[[Any], tuple[np.ndarray, int]]
  image_shape: tuple[int, int, int]
  num_classes: int
  where: str
  cut: Callable[[np.ndarray], np.ndarray] | None = None
  labels_of: Any = None

  @functools.cached_property
  def labels(self) -> np.ndarray:
    told = self if self.labels_of is None else self.labels_of
    return np.array([told[i]["label"] for i in range(len(self))], np.int32)

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, position: int) -> Example:
    return self._example(*self._raw([position])[0])

  def read(self, positions: np.ndarray) -> Example:
    return stack([self._example(p, r) for p, r in self._raw(positions)])

  def as_stored(self, positions: np.ndarray) -> list[Example]:
    """Several records whose images are of any size."""
    return [self._example(p, r, cut=False) for p, r in self._raw(positions)]

  def _raw(self, positions: Sequence[int] | np.ndarray) -> list[tuple[int, Any]]:
    many = getattr(self.records, "__getitems__", None)
    wanted = [int(p) for p in positions]
    with reading(self.where, "write it again"):
      found = many(wanted) if many else [self.records[p] for p in wanted]
    return list(zip(wanted, found, strict=True))

  def _example(self, position: int, raw: Any, *, cut: bool = True) -> Example:
    where = f"{self.where}, record {position}"
    try:
      image, label = self.decode(raw)
    except KdjaxError as error:
      raise KdjaxError(f"{where}: {error}") from None
    if self.cut is not None:
      if image.ndim != 3 or image.shape[2] != self.image_shape[2] or not image.size:
        raise KdjaxError(
          f"{where}: the image has shape {image.shape}; the first one has"
          f" {self.image_shape[2]} channels and all must have as many"
        )
      image = self.cut(image) if cut else image
    elif image.shape != self.image_shape:
      raise KdjaxError(
        f"{where}: the image has shape {image.shape}; the first one has {self.image_shape} and all"
        " must be equal. Set config.data.size (tfds_images) or resize them"
      )
    if not UNLABELLED <= label < self.num_classes:
      raise KdjaxError(
        f"{where}: label {label} is not in 0 .. {self.num_classes - 1} (or -1 for unknown); correct"
        " config.data.num_classes or the record"
      )
    return {"image": _unit_range(image), "label": np.int32(label), "index": np.int32(position)}


def arrays(
  train_images: np.ndarray,
  train_labels: np.ndarray,
  test_images: np.ndarray,
  test_labels: np.ndarray,
  *,
  num_classes: int | None = None,
  name: str = "arrays",
) -> DataSet:
  """A data set from NumPy arrays.

  Args:
    train_images: [N, H, W, C] or [N, H, W]; float in [0, 1], or uint8.
    train_labels: integers [N]; -1 for unknown.
    test_images: [M, H, W, C] or [M, H, W].
    test_labels: integers [M].
    num_classes: one more than the largest label where None.
    name: for messages.

  Returns:
    The data set; nothing is copied where the dtypes fit.

  Raises:
    KdjaxError: shapes, counts, dtypes or values that do not fit, naming the array.
  """
  labels = [np.asarray(train_labels), np.asarray(test_labels)]
  if num_classes is None:
    num_classes = 1 + max((int(each.max()) for each in labels if each.size), default=UNLABELLED)
  train = _checked(np.asarray(train_images), labels[0], num_classes, f"{name}: train")
  test = _checked(np.asarray(test_images), labels[1], num_classes, f"{name}: test")
  shapes = train.images.shape[1:], test.images.shape[1:]
  if shapes[0] != shapes[1]:
    raise KdjaxError(f"{name}: train images have shape {shapes[0]}, test images {shapes[1]}")
  return DataSet(train, test, num_classes, shapes[0], name)


def unstack(batch: Example) -> list[Example]:
  """The records of a batch."""
  return [{key: values[i] for key, values in batch.items()} for i in range(len(batch["index"]))]


def stack(examples: Sequence[Example]) -> Example:
  """Records stacked along a new first axis."""
  return {key: np.stack([e[key] for e in examples]) for key in examples[0]}


def _checked(images: np.ndarray, labels: np.ndarray, num_classes: int, where: str) -> ArraySource:
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4:
    raise KdjaxError(f"{where} images have shape {images.shape}; [N, H, W, C] is wanted")
  if labels.shape != images.shape[:1]:
    raise KdjaxError(
      f"{where} has {len(images)} images and labels of shape {labels.shape}; one label per image"
      " is wanted"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise KdjaxError(f"{where} labels have dtype {labels.dtype}; integers are wanted")
  if labels.size and not UNLABELLED <= labels.min() <= labels.max() < num_classes:
    raise KdjaxError(
      f"{where} labels lie in {labels.min()} .. {labels.max()}; 0 .. {num_classes - 1} is wanted"
      " (or -1 for unknown)"
    )
  if images.dtype != np.uint8:
    if not np.issubdtype(images.dtype, np.floating):
      raise KdjaxError(f"{where} images have dtype {images.dtype}; uint8 or floats are wanted")
    # A range test on both ends is False for nan too.
    if images.size and not (images.min() >= 0 and images.max() <= 1):
      raise KdjaxError(
        f"{where} images hold values from {images.min()} to {images.max()}; [0, 1] is wanted."
        " Scale them first"
      )
    images = images.astype(np.float32, copy=False)
  return ArraySource(images, labels.astype(np.int32, copy=False))


def _unit_range(image: np.ndarray) -> np.ndarray:
  if image.dtype == np.uint8:
    return image.astype(np.float32) / np.float32(255)
  return image.astype(np.float32, copy=False)
