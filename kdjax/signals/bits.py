"""Fields of bits and Rice codes, whole arrays at a time.

Bits are packed most significant first. A Rice code of parameter b writes a value as its low b bits
and, in a stream of its own, `value >> b` zeros and a one. Parameters are never stored: writer and
reader take them from what both know, by integer arithmetic, so that no platform rounds otherwise.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from kdjax.errors import KdjaxError

# A field is cut out of four bytes: 7 bits before it at most, so 25 are left.
MAX_WIDTH = 25


def width_of(largest: int) -> int:
  """Bits that hold 0 .. largest."""
  return int(largest).bit_length()


def rice_parameter(
  total: Int[np.ndarray, "n"], count: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
  """The parameter for `count` >= 1 values that sum to at most `total`: floor(log2(0.69 mean))."""
  scaled = np.maximum(np.asarray(total, np.int64) * 11 // (16 * np.asarray(count, np.int64)), 1)
  return np.frexp(scaled.astype(np.float64))[1].astype(np.int64) - 1


def pack_fields(
  values: Int[np.ndarray, "n"], widths: Int[np.ndarray, "n"]
) -> UInt8[np.ndarray, "b"]:
  """One bit per element: the low `widths[i]` bits of each `values[i]`, one after the other."""
  ends = np.cumsum(widths)
  owner = np.repeat(np.arange(len(widths)), widths)
  left = ends[owner] - 1 - np.arange(len(owner))  # bits of the same field that follow
  return ((values[owner] >> left) & 1).astype(np.uint8)


def read_fields(
  data: UInt8[np.ndarray, "bytes"], start: int, widths: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
  """What `pack_fields` wrote from bit `start` on.

  Raises:
    KdjaxError: the data end before the fields do.
  """
  ends = start + np.cumsum(widths)
  if len(ends) and ends[-1] > 8 * len(data):
    raise KdjaxError(f"{len(data)} bytes are too few for {ends[-1]} bits of fields")
  offsets = ends - widths
  padded = np.concatenate([data, np.zeros(4, np.uint8)])
  first = offsets >> 3
  word = np.zeros(len(widths), np.int64)
  for k in range(4):
    word = (word << 8) | padded[first + k]
  return (word >> (32 - (offsets & 7) - widths)) & ((1 << widths) - 1)


def pack_unary(values: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "b"]:
  """One bit per element: `values[i]` zeros and a one, for each."""
  ends = np.cumsum(values + 1)
  bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
  bits[ends - 1] = 1
  return bits


def read_unary(data: UInt8[np.ndarray, "bytes"], count: int) -> Int[np.ndarray, "n"]:
  """What `pack_unary` wrote, from the first byte on.

  Raises:
    KdjaxError: there are not exactly `count` values.
  """
  ends = np.flatnonzero(np.unpackbits(data))
  if len(ends) != count:
    raise KdjaxError(f"a unary stream holds {len(ends)} values where {count} are wanted")
  return np.diff(ends, prepend=-1) - 1
