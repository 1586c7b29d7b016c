"""One record of a shard: the key of its example, a checksum, the payload.

Bytes 0 .. 15 are the key, 16 .. 19 a little-endian CRC-32 of key and payload, the rest is the
payload (see `kdjax.signals.codec`).
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from kdjax.errors import KdjaxError

KEY_BYTES = 16
_HEADER = KEY_BYTES + 4


class Record(NamedTuple):
  """What is stored for one example.

  Attributes:
    key: 16 bytes, of the example's content.
    payload: its encoded signal.
    positions: how many it is for.
    slots: most classes of any of them.
  """

  key: bytes
  payload: bytes
  positions: int
  slots: int


def pack(key: bytes, payload: bytes) -> bytes:
  """The bytes of one record."""
  if len(key) != KEY_BYTES:
    raise KdjaxError(f"a key has {len(key)} bytes; {KEY_BYTES} are wanted")
  return key + struct.pack("<I", zlib.crc32(payload, zlib.crc32(key))) + payload


def unpack(record: bytes, key: bytes) -> bytes:
  """The payload of the record of `key`.

  Raises:
    KdjaxError: a record of another key, or bytes that are not those that were written.
  """
  if len(record) < _HEADER:
    raise KdjaxError(f"a record has {len(record)} bytes, fewer than its header")
  payload = record[_HEADER:]
  if struct.unpack_from("<I", record, KEY_BYTES)[0] != zlib.crc32(
    payload, zlib.crc32(record[:KEY_BYTES])
  ):
    raise KdjaxError("the checksum of a record is wrong")
  if record[:KEY_BYTES] != key:
    raise KdjaxError("a record lies where the index says another one is")
  return payload
