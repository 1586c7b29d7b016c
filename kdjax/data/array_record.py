"""Image data sets in ArrayRecord files, in a plain format that is safe to read.

A record is a little-endian uint32 n, n bytes of JSON such as
`{"dtype": "uint8", "shape": [28, 28, 1], "label": 3}`, and the image's bytes, row by row,
little-endian. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

from kdjax.data.base import DataSet, RecordSource
from kdjax.errors import KdjaxError
from kdjax.parsing import parse_json

DTYPES = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


def write_array_records(path: str | os.PathLike, examples: Iterable[tuple[np.ndarray, int]]) -> int:
  """Writes one ArrayRecord file; it appears under its name only when it is complete.

  Args:
    path: the file, usually `train.array_record`, or `train-00000-of-00004.array_record`.
    examples: (image, label) pairs; images [H, W, C], uint8 or float32 in [0, 1].

  Returns:
    The number of records.

  Raises:
    KdjaxError: an image of another dtype.
  """
  path = Path(path)
  scratch = path.with_name(path.name + ".tmp")
  # One record a group: random access then decompresses nothing but what is asked for.
  writer = ArrayRecordWriter(str(scratch), "group_size:1")
  count = 0
  try:
    for image, label in examples:
      writer.write(_encode(np.asarray(image), int(label)))
      count += 1
  finally:
    writer.close()
  os.replace(scratch, path)
  return count


def array_record_images(*, path: str, num_classes: int) -> DataSet:
  """Images that `write_array_records` stored.

  Args:
    path: folder of `train*.array_record` and `test*.array_record`.
    num_classes: labels are 0 .. num_classes - 1; each is checked when it is read.

  Returns:
    The data set; its name is the folder's. Records are read when they are asked for.

  Raises:
    KdjaxError: files that are missing, empty, corrupt or of another format.
  """
  folder = Path(path)
  if not folder.is_dir():
    raise KdjaxError(
      f"there is no folder {folder}; config.data.path must name one with train*.array_record and"
      " test*.array_record"
    )
  train, test = (_open(folder, split, num_classes) for split in ("train", "test"))
  if train.image_shape != test.image_shape:
    raise KdjaxError(
      f"{folder}: train images have shape {train.image_shape}, test images {test.image_shape}"
    )
  return DataSet(train, test, num_classes, train.image_shape, folder.name)


def _open(folder: Path, split: str, num_classes: int) -> RecordSource:
  files = sorted(folder.glob(f"{split}*.array_record"))
  if not files:
    raise KdjaxError(
      f"{folder} has no {split}*.array_record; write it with kdjax.data.write_array_records"
    )
  _check_complete(files)
  where = str(files[0]) if len(files) == 1 else f"{folder}/{split}*.array_record"
  try:
    # A file is opened when its first record is asked for, and held open from then on.
    records = ArrayRecordDataSource([str(file) for file in files])
    if not len(records):
      raise KdjaxError(f"{where} holds no records")
    first = records[0]
  except KdjaxError:
    raise
  except (RuntimeError, ValueError, OSError) as error:
    reason = str(error) or "it is truncated or damaged"
    raise KdjaxError(f"{where} is no readable ArrayRecord file: {reason}; write it again") from None
  try:
    image, _ = _decode(first)
  except KdjaxError as error:
    raise KdjaxError(f"{where}, record 0: {error}") from None
  return RecordSource(records, _decode, image.shape, num_classes, where)


def _check_complete(files: Sequence[Path]) -> None:
  """Raises KdjaxError where one of files named NAME-I-of-N is not there."""
  found: dict[tuple[str, str], set[int]] = {}
  for file in files:
    if told := re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.array_record", file.name):
      found.setdefault((told[1], told[3]), set()).add(int(told[2]))
  for (name, count), numbers in found.items():
    missing = sorted(set(range(int(count))) - numbers)
    if len(numbers) < int(count):
      lost = files[0].with_name(f"{name}-{missing[0]:0{len(count)}}-of-{count}.array_record")
      raise KdjaxError(
        f"{lost} is missing: {len(numbers)} of {int(count)} such files are there. Put it back;"
        " without it the others would be another data set"
      )


def _encode(image: np.ndarray, label: int) -> bytes:
  if image.dtype.name not in DTYPES or image.ndim != 3:
    raise KdjaxError(
      f"an image of dtype {image.dtype} and shape {image.shape} cannot be stored; [H, W, C] of"
      f" {' or '.join(DTYPES)} is wanted"
    )
  fields = {"dtype": image.dtype.name, "shape": list(image.shape), "label": label}
  header = json.dumps(fields).encode()
  body = image.astype(DTYPES[image.dtype.name], copy=False).tobytes()
  return struct.pack("<I", len(header)) + header + body


def _decode(record: bytes) -> tuple[np.ndarray, int]:
  other = "the record is not in the format of kdjax.data.write_array_records"
  if len(record) < 4:
    raise KdjaxError(f"{other}: it has {len(record)} bytes")
  body = 4 + struct.unpack_from("<I", record)[0]
  try:
    fields = parse_json(record[4:body])
  except ValueError:  # also what is not UTF-8
    raise KdjaxError(f"{other}: its header is no JSON") from None
  if not _well_formed(fields):
    raise KdjaxError(f"{other}: its header is {fields!r}")
  dtype, shape = DTYPES[fields["dtype"]], tuple(fields["shape"])
  size = math.prod(shape) * dtype.itemsize
  if len(record) - body != size:
    raise KdjaxError(f"{other}: {shape} takes {size} bytes, it has {len(record) - body}")
  return np.frombuffer(record, dtype, offset=body).reshape(shape), fields["label"]


def _well_formed(fields: Any) -> bool:
  return (
    isinstance(fields, dict)
    and isinstance(fields.get("dtype"), str)
    and fields["dtype"] in DTYPES
    and isinstance(fields.get("label"), int)
    and isinstance(fields.get("shape"), list)
    and len(fields["shape"]) == 3
    and all(isinstance(n, int) and n > 0 for n in fields["shape"])
  )
