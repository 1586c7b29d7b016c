"""Whether the header of a GGUF file keeps to what the file can hold.

The gguf package reads what the counts in a header announce. Damaged or hostile ones announce more
than there is, which would cost it hours or all memory: so a header is walked through first.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from kdjax.errors import KdjaxError

# Bytes of each type of value: u8, i8, u16, i16, u32, i32, f32, bool; then u64, i64, f64.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 22  # entries of an array: four times the largest vocabulary
_DIMENSIONS = 4  # of a tensor, as in ggml
_DENSEST = 8  # values that a byte may hold


def check_header(path: Path) -> None:
  """Raises KdjaxError where a GGUF file's header tells of more than the file holds."""
  size = path.stat().st_size
  with path.open("rb") as file:
    try:
      _walk(file, size)
    except (ValueError, struct.error) as error:
      raise KdjaxError(f"{path} is not a whole GGUF file ({error}); download it again") from None


def _walk(file: BinaryIO, size: int) -> None:
  def number(form: str) -> int:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]

  def skip(count: int) -> None:
    if count > size - file.tell():
      raise ValueError("it ends inside its header")
    file.seek(count, 1)

  def skip_value(kind: int) -> None:
    if kind == _STRING:
      skip(number("Q"))
    elif kind == _ARRAY:
      kind, count = number("I"), number("Q")
      if kind == _ARRAY or count > _MOST:
        raise ValueError(f"its header has an array of {count} values of the type {kind}")
      if kind in _SIZES:
        skip(count * _SIZES[kind])
      else:
        for _ in range(count):
          skip_value(kind)
    elif kind in _SIZES:
      skip(_SIZES[kind])
    else:
      raise ValueError(f"its header has a value of the type {kind}")

  if file.read(4) != b"GGUF":
    raise ValueError("it does not begin with GGUF")
  if number("I") & 0xFFFF == 0:
    raise ValueError("it is a big-endian file: convert it to little-endian")
  tensors, pairs = number("Q"), number("Q")
  for _ in range(pairs):
    skip(number("Q"))
    skip_value(number("I"))
  for _ in range(tensors):
    skip(number("Q"))
    if (count := number("I")) > _DIMENSIONS:
      raise ValueError(f"a tensor has {count} dimensions")
    shape = [number("Q") for _ in range(count)]
    number("I")
    if number("Q") > size or math.prod(shape) > _DENSEST * size:
      raise ValueError(f"a tensor of shape {shape[::-1]} lies outside the file")
