"""The safetensors format: a JSON header that says where each tensor lies, then their bytes.

Read and written here, not through the safetensors package, so that single rows can be read in every
dtype, that a file can be written tensor by tensor, and that damage is told apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from kdjax.errors import KdjaxError
from kdjax.parsing import parse_json

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors package


class Place(NamedTuple):
  """A tensor in a file: `offset` counts bytes from the file's start."""

  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int


def read_header(path: Path) -> dict[str, Place]:
  """Where each tensor of a safetensors file lies.

  Raises:
    KdjaxError: when the file is not whole or not a safetensors file.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= _LONGEST_HEADER:
      raise _damaged(path, f"its first 8 bytes give a header of {length} bytes")
    if 8 + length > size:
      raise _damaged(path, f"it ends after {size} bytes, inside its header of {length} bytes")
    try:
      header = parse_json(file.read(length))
      found = {k: _entry(v) for k, v in header.items() if k != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise _damaged(path, f"its header cannot be read ({error})") from None
  # The tensors fill the rest of the file, each exactly once.
  end = 0
  for name, (place, stop) in sorted(
    found.items(), key=lambda item: (item[1][0].offset, item[1][1])
  ):
    if place.offset != end or stop - place.offset != _bytes(place.shape, place.dtype):
      raise _damaged(path, f"the place of the tensor {name!r} does not fit its shape or neighbours")
    end = stop
  if 8 + length + end != size:
    raise _damaged(path, f"its header tells of {8 + length + end} bytes and it has {size}")
  return {k: place._replace(offset=place.offset + 8 + length) for k, (place, _) in found.items()}


def read_bytes(path: Path, offset: int, count: int) -> np.ndarray:
  """`count` bytes of a file, as uint8. Only these are read, and nothing stays mapped."""
  out = np.fromfile(path, np.uint8, count=count, offset=offset)
  if out.size != count:
    raise KdjaxError(f"{path} became shorter while it was read; restore it and start again")
  return out


def read_rows(path: Path, place: Place, start: int, stop: int) -> np.ndarray:
  """Rows start..stop-1 along the first axis of a tensor (of a scalar: its one value, [1])."""
  row = place.shape[1:]
  size = _bytes(row, place.dtype)
  raw = read_bytes(path, place.offset + start * size, (stop - start) * size)
  return raw.view(place.dtype).reshape(stop - start, *row)


def header_of(tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]]) -> bytes:
  """The first bytes of a file in which these tensors (name, shape, dtype) follow in this order."""
  header: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
  end = 0
  for name, shape, dtype in tensors:
    begin, end = end, end + _bytes(shape, dtype)
    header[name] = {"dtype": dtype_name(dtype), "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # data starts aligned
  return len(text).to_bytes(8, "little") + text


def dtype_name(dtype: np.dtype) -> str:
  """Such as "BF16"; KdjaxError for a dtype that the format does not have."""
  if dtype not in _NAMES:
    raise KdjaxError(f"safetensors has no dtype {dtype}; it has {', '.join(map(str, _NAMES))}")
  return _NAMES[dtype]


def _entry(value: Mapping) -> tuple[Place, int]:
  begin, stop = value["data_offsets"]
  shape = tuple(value["shape"])
  if not all(type(n) is int and n >= 0 for n in (begin, stop, *shape)):
    raise ValueError(f"shape {value['shape']} at {value['data_offsets']}")
  return Place(shape, DTYPES[value["dtype"]], begin), stop


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return math.prod(shape) * dtype.itemsize


def _damaged(path: Path, why: str) -> KdjaxError:
  return KdjaxError(f"{path} is not a whole safetensors file: {why}. Copy or download it again")
