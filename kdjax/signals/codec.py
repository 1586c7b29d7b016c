"""Teacher signals as bytes: one payload per example, decoded without a loop over positions.

Format 1. Integers are little-endian; fields of bits and Rice codes are those of
`kdjax.signals.bits`. A payload begins with uint32 T, the number of positions (1 for an image). V is
the vocabulary, n the number of classes stored for a position, in ascending order.

sampled, N draws a position
  1. n - 1 of each position, in the bits that hold min(N, V) - 1
  2. low bits of the gaps between ids (id - previous id - 1; the first counts from -1), Rice
     parameter from (V - n) / n
  3. low bits of count - 1 of each id but a position's last, whose count is what N leaves; Rice
     parameter from (N - n) / n
  4. zeros to the next byte; then the unary parts of 2, those of 3, zeros to the next byte
top_k, K classes a position
  1. n - 1 of each position, in the bits that hold K - 1; -inf is not stored
  2. per position 16 bits of tail mass t: 0 is none, else log(t / (1 - t)) = 24 (code / 32768 - 1);
     8 bits of range R in units of 1/8 nat, upwards, at most 31.875 nats: what is less likely than
     that beside the likeliest class (10^-14 of it) is stored as if it were not
  3. low bits of the gaps between ids, as above
  4. 8 bits per class: (log of the largest probability - log of its own) 255 / R, rounded
  5. zeros to the next byte; then the unary parts of 3, zeros to the next byte
  Decoded probabilities are scaled to sum to 1 - t, so that the tail is right whatever rounding did.
hidden
  the rows, float32, float16 or bfloat16

Sorting ids is what makes both sparse forms small: a set of 45 out of 151,936 takes 13 bits a class
instead of 18. Eight bits spread over a position's own range round log-probabilities by R / 510 at
most, typically 0.01; bfloat16 rounds those between 4 and 8 nats by up to 0.016 and, worse, loses
the tail. For n = 45 the Rice codes cannot exceed 614 bits whatever the ids, so that a top-45 record
takes at most 125.5 bytes a position (and a sixty-fourth for four bytes of T).
"""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from kdjax.errors import KdjaxError
from kdjax.signals.bits import (
  MAX_WIDTH,
  pack_fields,
  pack_unary,
  read_fields,
  read_unary,
  rice_parameter,
  width_of,
)

VERSION = 1
HIDDEN_DTYPES = {
  "float32": np.dtype("<f4"),
  "float16": np.dtype("<f2"),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_TAIL, _RANGE, _VALUE = 16, 8, 8  # bits
_LOGIT = 24.0  # largest |log(t / (1 - t))| of a tail mass
_PER_NAT = 8


def encode_sampled(draws: Int[np.ndarray, "time n"], *, vocab: int) -> bytes:
  """Packs draws with replacement as distinct ids with their counts.

  Args:
    draws: [T, N] class ids, in any order.
    vocab: V.

  Returns:
    The payload.
  """
  length, number = draws.shape
  _check_ids(draws, vocab)
  draws = np.sort(draws.astype(np.int64), axis=1)
  new = np.ones(draws.shape, bool)
  new[:, 1:] = draws[:, 1:] != draws[:, :-1]
  first = np.flatnonzero(new)
  counts = np.diff(first, append=draws.size)
  n = new.sum(axis=1)
  layout = _Layout(n)
  gap, gap_bits = _gaps(draws[new], layout, vocab)
  kept = ~layout.last
  excess = counts[kept] - 1
  excess_bits = rice_parameter(number - n, n)[layout.position[kept]]
  size = np.full(length, width_of(min(number, vocab) - 1))
  fields = (n - 1, gap, excess), (size, gap_bits, excess_bits)
  return _assemble(length, *fields, unary=[gap >> gap_bits, excess >> excess_bits])


def decode_sampled(
  payload: bytes, *, vocab: int, draws: int, slots: int
) -> tuple[Int[np.ndarray, "time slots"], Float[np.ndarray, "time slots"]]:
  """The inverse of `encode_sampled`.

  Args:
    payload: what it returned.
    vocab: V.
    draws: N.
    slots: size of the last axis, at least the number of distinct ids of any position.

  Returns:
    (ids int32 [T, slots] ascending, weights float32 [T, slots] = count / N); unused slots are 0.

  Raises:
    KdjaxError: bytes that `encode_sampled` cannot have written.
  """
  length, data = _open(payload)
  size = np.full(length, width_of(min(draws, vocab) - 1))
  n = read_fields(data, 0, size) + 1
  layout = _Layout(n)
  kept = ~layout.last
  gap_bits = rice_parameter(vocab - n, n)[layout.position]
  excess_bits = rice_parameter(draws - n, n)[layout.position[kept]]
  widths = np.concatenate([gap_bits, excess_bits])
  start = int(size.sum())
  low = read_fields(data, start, widths)
  high = read_unary(data[_bytes(start + int(widths.sum())) :], len(widths))
  value = (high << widths) + low
  ids = _ids(value[: layout.total], layout)
  counts = np.zeros(layout.total, np.int64)
  counts[kept] = value[layout.total :] + 1
  stored = np.bincount(layout.position, counts, minlength=length).astype(np.int64)
  counts[layout.last] = draws - stored
  weights = counts.astype(np.float32) / np.float32(draws)
  return layout.spread(ids.astype(np.int32), slots, 0), layout.spread(weights, slots, 0)


def encode_top_k(
  ids: Int[np.ndarray, "time k"], log_probs: Float[np.ndarray, "time k"], *, vocab: int
) -> bytes:
  """Packs the likeliest classes with their log-probabilities and the mass of the rest.

  Args:
    ids: [T, K], distinct in each position, in any order.
    log_probs: [T, K], normalised over the whole vocabulary; -inf marks an unused slot, and no
      position may have only those.
    vocab: V.

  Returns:
    The payload.
  """
  length, k = ids.shape
  _check_ids(ids, vocab)
  used = log_probs > -np.inf
  order = np.argsort(np.where(used, ids, vocab), axis=1)
  ids = np.take_along_axis(ids.astype(np.int64), order, axis=1)
  values = np.take_along_axis(log_probs.astype(np.float64), order, axis=1)
  used = np.take_along_axis(used, order, axis=1)
  n = used.sum(axis=1)
  if not n.all():
    raise KdjaxError("a position has no class of finite log-probability; nothing can be stored")
  layout = _Layout(n)
  gap, gap_bits = _gaps(ids[used], layout, vocab)
  tail = np.clip(1 - np.exp(values).sum(axis=1, where=used), 0, 1)
  largest = values.max(axis=1)
  smallest = np.min(values, axis=1, where=used, initial=np.inf)
  reach = np.minimum(np.ceil((largest - smallest) * _PER_NAT), 2**_RANGE - 1).astype(np.int64)
  step = np.maximum(reach, 1) / (_PER_NAT * (2**_VALUE - 1))
  level = np.rint((largest[:, None] - values)[used] / step[layout.position])
  level = np.minimum(level, 2**_VALUE - 1).astype(np.int64)
  return _assemble(
    length,
    (n - 1, _tail_code(tail, n, vocab), reach, gap, level),
    (
      np.full(length, width_of(k - 1)),
      np.full(length, _TAIL),
      np.full(length, _RANGE),
      gap_bits,
      np.full(layout.total, _VALUE),
    ),
    unary=[gap >> gap_bits],
  )


def decode_top_k(
  payload: bytes, *, vocab: int, k: int
) -> tuple[Int[np.ndarray, "time k"], Float[np.ndarray, "time k"]]:
  """The inverse of `encode_top_k`, to the rounding that the format allows.

  Args:
    payload: what it returned.
    vocab: V.
    k: K.

  Returns:
    (ids int32 [T, K] ascending, log_probs float32 [T, K]); unused slots are (0, -inf). One minus
    the sum of probabilities is the mass of all other classes.

  Raises:
    KdjaxError: bytes that `encode_top_k` cannot have written.
  """
  length, data = _open(payload)
  head = np.repeat([width_of(k - 1), _TAIL, _RANGE], length)
  n, tail_code, reach = read_fields(data, 0, head).reshape(3, length)
  n = n + 1
  layout = _Layout(n)
  gap_bits = rice_parameter(vocab - n, n)[layout.position]
  widths = np.concatenate([gap_bits, np.full(layout.total, _VALUE)])
  start = int(head.sum())
  low, level = read_fields(data, start, widths).reshape(2, layout.total)
  high = read_unary(data[_bytes(start + int(widths.sum())) :], layout.total)
  ids = _ids((high << gap_bits) + low, layout)
  step = np.maximum(reach, 1) / (_PER_NAT * (2**_VALUE - 1))
  below = level * step[layout.position]
  mass = np.bincount(layout.position, np.exp(-below), minlength=length)
  inside = np.log1p(-_tail(tail_code)) - np.log(mass)
  log_probs = (inside[layout.position] - below).astype(np.float32)
  return layout.spread(ids.astype(np.int32), k, 0), layout.spread(log_probs, k, -np.inf)


def encode_hidden(hidden: Float[np.ndarray, "time width"], *, dtype: str) -> bytes:
  """Packs hidden states, rounded to `dtype` (a key of `HIDDEN_DTYPES`)."""
  rows = np.ascontiguousarray(hidden.astype(HIDDEN_DTYPES[dtype]))
  return struct.pack("<I", len(rows)) + rows.tobytes()


def decode_hidden(payload: bytes, *, dtype: str, width: int) -> Float[np.ndarray, "time width"]:
  """The inverse of `encode_hidden`.

  Raises:
    KdjaxError: bytes of another size.
  """
  length, data = _open(payload)
  kind = HIDDEN_DTYPES[dtype]
  if len(data) != length * width * kind.itemsize:
    raise KdjaxError(f"{len(data)} bytes do not hold {length} rows of {width} {dtype}")
  return data.view(kind).reshape(length, width)


class _Layout:
  """Entries of all positions in one row: which position each belongs to, and where it stands."""

  def __init__(self, n: Int[np.ndarray, "time"]):
    self.length, self.total = len(n), int(n.sum())
    self.starts = np.cumsum(n) - n
    self.position = np.repeat(np.arange(len(n)), n)
    self.last = np.zeros(self.total, bool)
    self.last[self.starts + n - 1] = True

  def spread(self, entries: np.ndarray, slots: int, fill: float) -> np.ndarray:
    """The entries as [T, slots], `fill` where there are fewer."""
    place = np.arange(self.total) - self.starts[self.position]
    if self.total and place.max() >= slots:
      raise KdjaxError(f"a position holds {place.max() + 1} classes where {slots} fit")
    out = np.full((self.length, slots), fill, entries.dtype)
    out[self.position, place] = entries
    return out


def _gaps(ids: np.ndarray, layout: _Layout, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  """(gap before each id, its Rice parameter)."""
  n = np.bincount(layout.position, minlength=layout.length)
  previous = np.concatenate([[-1], ids[:-1]])
  previous[layout.starts] = -1
  return ids - previous - 1, rice_parameter(vocab - n, n)[layout.position]


def _ids(gaps: np.ndarray, layout: _Layout) -> np.ndarray:
  running = np.cumsum(gaps + 1)
  before = np.concatenate([[0], running])[layout.starts]
  return running - before[layout.position] - 1


def _assemble(length, values, widths, *, unary) -> bytes:
  values, widths = (np.concatenate(parts) for parts in (values, widths))
  fields = np.packbits(pack_fields(values, widths)).tobytes()
  stream = np.packbits(pack_unary(np.concatenate(unary))).tobytes()
  return struct.pack("<I", length) + fields + stream


def _open(payload: bytes) -> tuple[int, np.ndarray]:
  if len(payload) < 4:
    raise KdjaxError(f"a payload of {len(payload)} bytes has no length")
  return struct.unpack_from("<I", payload)[0], np.frombuffer(payload, np.uint8, offset=4)


def _bytes(bits: int) -> int:
  return -(-bits // 8)


def _tail_code(tail: np.ndarray, n: np.ndarray, vocab: int) -> np.ndarray:
  inside = np.clip(tail, 1e-300, 1 - 1e-15)
  logit = np.clip(np.log(inside) - np.log1p(-inside), -_LOGIT, _LOGIT)
  code = np.rint((logit / _LOGIT + 1) * 2 ** (_TAIL - 1)).astype(np.int64)
  # What is left beside every class is rounding.
  return np.where((tail <= 0) | (n == vocab), 0, np.clip(code, 1, 2**_TAIL - 1))


def _tail(code: np.ndarray) -> np.ndarray:
  logit = _LOGIT * (code / 2 ** (_TAIL - 1) - 1)
  return np.where(code == 0, 0.0, 1 / (1 + np.exp(-logit)))


def _check_ids(ids: np.ndarray, vocab: int) -> None:
  if vocab > 2**MAX_WIDTH:
    raise KdjaxError(f"a vocabulary of {vocab} is too large to be stored; at most {2**MAX_WIDTH}")
  if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
    raise KdjaxError(f"class ids lie in {ids.min()} .. {ids.max()}; 0 .. {vocab - 1} is wanted")
