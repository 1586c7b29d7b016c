"""Writes a cache shard by shard; what is finished survives a kill."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors import SafetensorError
from safetensors.numpy import save_file

from kdjax.errors import KdjaxError
from kdjax.signals.manifest import (
  MANIFEST,
  PLAN,
  Manifest,
  Spec,
  claim,
  read_json,
  storing,
  write_json,
)
from kdjax.signals.records import KEY_BYTES, Record, pack

INDEX = "index.npy"
HEAD = "head.safetensors"
# One record a group: random access then reads nothing but what is asked for. Payloads are packed
# bits already, on which a compressor only spends time.
OPTIONS = "group_size:1,uncompressed"


class CacheWriter:
  """One process's part in writing a cache.

  Shard s is written by process s % processes, under another name until it is complete. A file
  beside it keeps its keys and sizes, from which process 0 makes index and manifest at the end.
  """

  def __init__(self, folder: Path, spec: Spec, *, process: int = 0, processes: int = 1):
    """Claims the folder.

    Args:
      folder: where to.
      spec: what is to be written.
      process: this one.
      processes: how many share the work.

    Raises:
      KdjaxError: the folder holds another cache, or cannot be written to.
    """
    self.folder, self.spec = Path(folder), spec
    self._process, self._processes = process, processes
    claim(self.folder, spec, write=process == 0)

  @property
  def finished(self) -> bool:
    """Whether all files are there, and every shard in full size."""
    names = [MANIFEST, INDEX, *([HEAD] if self.spec.kind == "hidden" else [])]
    there = all((self.folder / name).is_file() for name in names)
    return there and not self._missing(range(self.spec.num_shards))

  def missing(self) -> list[int]:
    """The shards that this process has yet to write."""
    return self._missing(range(self._process, self.spec.num_shards, self._processes))

  def rows_of(self, number: int) -> range:
    """The rows of the data whose examples a shard holds."""
    first = number * self.spec.rows_per_shard
    return range(first, min(first + self.spec.rows_per_shard, self.spec.rows))

  def write(self, number: int, records: Iterable[Record]) -> None:
    """Writes one shard; nothing is left under its name when `records` fails.

    Raises:
      KdjaxError: a disk that is full or cannot be written to.
    """
    path = self.folder / self.spec.shard_name(number)
    scratch = path.with_name(path.name + ".tmp")
    keys, positions, slots, size = [], 0, 0, 0
    self.folder.mkdir(parents=True, exist_ok=True)
    with storing(scratch):
      writer = ArrayRecordWriter(str(scratch), OPTIONS)
    try:
      for record in records:
        packed = pack(record.key, record.payload)
        with storing(scratch):
          writer.write(packed)
        size += len(packed)
        keys.append(record.key)
        positions += record.positions
        slots = max(slots, record.slots)
    finally:
      with storing(scratch):
        writer.close()
    with storing(path):
      fields = {"bytes": scratch.stat().st_size, "sha256": _sha256(scratch)}
      fields |= {"examples": len(keys), "positions": positions, "record_bytes": size}
      write_json(_beside(path), fields | {"slots": slots, "keys": b"".join(keys).hex()})
      # The shard's own name comes last: where it is, all that belongs to it is.
      scratch.replace(path)

  def write_head(self, arrays: dict[str, np.ndarray]) -> None:
    """Stores the teacher's head ("kernel" [D, V] or "embedding" [V, D], perhaps "bias"), once."""
    path = self.folder / HEAD
    scratch = path.with_name(path.name + ".tmp")
    with storing(path):
      try:
        save_file(arrays, scratch)
      except SafetensorError as error:
        raise OSError(str(error)) from None
      scratch.replace(path)

  def finish(self) -> Manifest:
    """Writes index and manifest once every shard is there; process 0 calls it, after the others.

    Raises:
      KdjaxError: shards are missing.
    """
    if missing := self._missing(range(self.spec.num_shards)):
      raise KdjaxError(
        f"{self.folder} has {len(missing)} shards yet to be written, the first is"
        f" {self.spec.shard_name(missing[0])}; run the same command again"
      )
    parts = [self._sidecar(number) for number in range(self.spec.num_shards)]
    keys = b"".join(bytes.fromhex(part.pop("keys")) for part in parts)
    # Half a key finds a record; the record holds the whole and is checked against it.
    halves = np.frombuffer(keys, ">u8").reshape(-1, KEY_BYTES // 8)[:, 0].astype(np.uint64)
    order = np.argsort(halves, kind="stable")
    index = np.stack([halves[order], order.astype(np.uint64)]).astype("<u8")
    path = self.folder / INDEX
    scratch = path.with_name("index.tmp.npy")
    with storing(path):
      np.save(scratch, index, allow_pickle=False)
      scratch.replace(path)
    slots = max(part.pop("slots") for part in parts)
    head = self.folder / HEAD
    manifest = Manifest(
      spec=self.spec,
      slots=slots if self.spec.kind == "sampled" else self.spec.support,
      examples=sum(part["examples"] for part in parts),
      positions=sum(part["positions"] for part in parts),
      bytes=sum(part["bytes"] for part in parts) + path.stat().st_size,
      record_bytes=sum(part["record_bytes"] for part in parts),
      shards=tuple({"name": self.spec.shard_name(i)} | part for i, part in enumerate(parts)),
      index_crc32=zlib.crc32(index),
      head_sha256=_sha256(head) if self.spec.kind == "hidden" else None,
    )
    write_json(self.folder / MANIFEST, manifest.as_json())
    (self.folder / PLAN).unlink(missing_ok=True)
    return manifest

  def _missing(self, numbers: Iterable[int]) -> list[int]:
    return [number for number in numbers if not self._complete(number)]

  def _complete(self, number: int) -> bool:
    path = self.folder / self.spec.shard_name(number)
    # A shard that has lost bytes since is written again.
    return (
      path.is_file()
      and _beside(path).is_file()
      and path.stat().st_size == self._sidecar(number)["bytes"]
    )

  def _sidecar(self, number: int) -> dict:
    return read_json(_beside(self.folder / self.spec.shard_name(number)))


def _beside(path: Path) -> Path:
  return path.with_suffix(".json")


def _sha256(path: Path) -> str:
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.fsync(file.fileno())
  return digest
