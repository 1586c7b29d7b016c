"""IDX files, the format of MNIST and of the many sets made in its likeness."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from kdjax.data.base import DataSet, arrays
from kdjax.errors import KdjaxError

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
UNSIGNED_BYTE = 0x08
_BLOCK = 1 << 20  # bytes
HELP = "config.data.path must name a folder with the four IDX files, .gz or not"


def fashion_mnist(*, path: str | None = None) -> DataSet:
  """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 pixels, 10 kinds of clothing.

  Args:
    path: folder of the four IDX files; where None, the one of Debian's package
      dataset-fashion-mnist.

  Returns:
    The data set.

  Raises:
    KdjaxError: as `idx_images`.

  Reference:
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747
  """
  if path is None and not Path(FASHION_MNIST).is_dir():
    raise KdjaxError(
      f"Fashion-MNIST is not in {FASHION_MNIST}; run `apt install dataset-fashion-mnist`, or set"
      " config.data.path to a folder with its four IDX files"
    )
  return idx_images(path=path or FASHION_MNIST)._replace(name="fashion_mnist")


def idx_images(*, path: str, num_classes: int | None = None) -> DataSet:
  """Any image data set in MNIST's layout.

  Args:
    path: folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`
      and `t10k-labels-idx1-ubyte`, each with or without `.gz`.
    num_classes: one more than the largest label where None.

  Returns:
    The data set; its name is the folder's.

  Raises:
    KdjaxError: a folder or file that is missing, truncated, corrupt or of another format, or counts
      that differ; names the file.
  """
  folder = Path(path)
  if not folder.is_dir():
    raise KdjaxError(f"there is no folder {folder}; {HELP}")
  read = {}
  for split in ("train", "t10k"):
    images = _find(folder, f"{split}-images-idx3-ubyte")
    labels = _find(folder, f"{split}-labels-idx1-ubyte")
    read[split] = read_idx(images, ndim=3), read_idx(labels, ndim=1)
    counts = [len(array) for array in read[split]]
    if counts[0] != counts[1]:
      raise KdjaxError(
        f"{images} holds {counts[0]} images, but {labels} holds {counts[1]} labels; replace the"
        " one that does not belong"
      )
  return arrays(*read["train"], *read["t10k"], num_classes=num_classes, name=folder.name)


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
  """Reads one IDX file of unsigned bytes.

  Args:
    path: the file; compressed if it ends in `.gz`.
    ndim: how many dimensions it must have.

  Returns:
    uint8, of the shape in the header.

  Raises:
    KdjaxError: not an IDX file of that kind, truncated, corrupt, or followed by other bytes.
  """
  again = "copy or download the file again"
  try:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
      magic = file.read(4)
      wanted = bytes([0, 0, UNSIGNED_BYTE, ndim])
      if magic != wanted:
        raise KdjaxError(
          f"{path} starts with the bytes {magic.hex(' ')}; an IDX file of unsigned bytes with"
          f" {ndim} dimension(s) starts with {wanted.hex(' ')}"
        )
      header = file.read(4 * ndim)
      if len(header) < 4 * ndim:
        raise KdjaxError(f"{path} ends within its header; {again}")
      shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
      size = math.prod(shape)
      # Not read(size): the size is a claim, and memory would be taken for it before it is checked.
      # Nor read(): a small compressed file may hold gigabytes.
      data = bytearray()
      while len(data) <= size and (block := file.read(_BLOCK)):
        data += block
  except (OSError, EOFError, zlib.error) as error:
    raise KdjaxError(f"{path} cannot be read ({error}); {again}") from None
  if len(data) != size:
    found = f"only {len(data)}" if len(data) < size else "more"
    raise KdjaxError(f"{path} announces {shape}, that is {size} bytes, but holds {found}; {again}")
  try:
    return np.frombuffer(data, np.uint8).reshape(shape)
  except ValueError as error:  # no bytes of an enormous shape
    raise KdjaxError(f"{path} announces {shape} ({error}); {again}") from None


def _find(folder: Path, name: str) -> Path:
  for candidate in (folder / name, folder / f"{name}.gz"):
    if candidate.is_file():
      return candidate
  raise KdjaxError(f"{folder} has neither {name} nor {name}.gz; {HELP}")
