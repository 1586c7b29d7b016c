"""Reads a finished cache by the keys of examples."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from grain.sources import ArrayRecordDataSource
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kdjax.errors import KdjaxError, reading
from kdjax.signals import codec
from kdjax.signals.manifest import Manifest, read_manifest
from kdjax.signals.records import unpack
from kdjax.signals.writer import HEAD, INDEX

AGAIN = "run launch.cache_teacher with the same flags: it writes what is missing"


class Cache:
  """A finished cache. Copies to reader processes open their own files.

  Attributes:
    folder: where it lies.
    manifest: what it says about itself.
  """

  def __init__(self, folder: str | Path):
    """Opens a cache; sizes and the index are checked, records when they are read.

    Raises:
      KdjaxError: no finished cache, or a file of it that is missing, truncated or damaged.
    """
    self.folder = Path(folder)
    self.manifest: Manifest = read_manifest(self.folder)
    for shard in self.manifest.shards:
      path = self.folder / shard["name"]
      size = path.stat().st_size if path.is_file() else None
      if size != shard["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
        raise KdjaxError(f"{path} {found}; {AGAIN}")
    self._index = self._read_index()
    examples = [shard["examples"] for shard in self.manifest.shards]
    self._starts = np.cumsum([0, *examples])
    self._open: dict[int, ArrayRecordDataSource] = {}

  def __reduce__(self):
    return Cache, (self.folder,)

  def find(self, keys: Sequence[bytes]) -> Int[np.ndarray, "n"]:
    """The record number of each key, -1 where there is none."""
    wanted = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
    halves, numbers = self._index
    place = np.minimum(np.searchsorted(halves, wanted), len(halves) - 1)
    return np.where(halves[place] == wanted, numbers[place].astype(np.int64), -1)

  def read(self, keys: Sequence[bytes]) -> list[dict[str, np.ndarray]]:
    """The signals of examples, decoded.

    Args:
      keys: of 16 bytes; all of them are in the cache (see `find`).

    Returns:
      For each the arrays [T, ...] of its positions: "ids" and "values" (weights for sampled,
      log-probabilities for top_k), or "hidden".

    Raises:
      KdjaxError: a damaged shard, named.
    """
    numbers = self.find(keys)
    shards = np.searchsorted(self._starts, numbers, side="right") - 1
    out: list = [None] * len(keys)
    for shard in np.unique(shards):
      places = np.flatnonzero(shards == shard)
      inside = (numbers[places] - self._starts[shard]).tolist()
      path = self.folder / self.manifest.shards[shard]["name"]
      with reading(path, f"delete it and {AGAIN}"):
        for place, raw in zip(places, self._records(int(shard)).__getitems__(inside), strict=True):
          out[place] = self._decode(unpack(raw, keys[place]))
    return out

  def head(self) -> dict[str, np.ndarray]:
    """The teacher's head: "kernel" [D, V] or "embedding" [V, D], and perhaps "bias" [V].

    Raises:
      KdjaxError: it is damaged or not there.
    """
    path = self.folder / HEAD
    try:
      with open(path, "rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == self.manifest.head_sha256
      if not whole:
        raise KdjaxError("its checksum is wrong")
      return load_file(path)
    except (OSError, SafetensorError, KdjaxError) as error:
      raise KdjaxError(f"{path} is damaged ({error}); delete it and {AGAIN}") from None

  def check_shards(self) -> None:
    """Reads every shard whole and compares checksums; raises KdjaxError naming the damaged one."""
    for shard in self.manifest.shards:
      path = self.folder / shard["name"]
      with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
          raise KdjaxError(f"{path} is damaged (its checksum is wrong); delete it and {AGAIN}")

  def shapes(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype, float]]:
    """Per array of an example: its shape behind the positions, its dtype, what fills the rest."""
    spec, slots = self.manifest.spec, self.manifest.slots
    if spec.kind == "hidden":
      return {"hidden": ((spec.support,), codec.HIDDEN_DTYPES[spec.dtype], 0.0)}
    fill = 0.0 if spec.kind == "sampled" else -np.inf
    return {
      "ids": ((slots,), np.dtype(np.int32), 0),
      "values": ((slots,), np.dtype(np.float32), fill),
    }

  def _decode(self, payload: bytes) -> dict[str, np.ndarray]:
    spec = self.manifest.spec
    if spec.kind == "hidden":
      return {"hidden": codec.decode_hidden(payload, dtype=spec.dtype, width=spec.support)}
    if spec.kind == "sampled":
      ids, values = codec.decode_sampled(
        payload, vocab=spec.vocab, draws=spec.support, slots=self.manifest.slots
      )
    else:
      ids, values = codec.decode_top_k(payload, vocab=spec.vocab, k=spec.support)
    return {"ids": ids, "values": values}

  def _records(self, shard: int) -> ArrayRecordDataSource:
    if shard not in self._open:
      path = self.folder / self.manifest.shards[shard]["name"]
      self._open[shard] = ArrayRecordDataSource([str(path)])
    return self._open[shard]

  def _read_index(self) -> np.ndarray:
    path = self.folder / INDEX
    try:
      index = np.load(path, mmap_mode="r", allow_pickle=False)
      if index.shape != (2, self.manifest.examples) or index.dtype != np.dtype("<u8"):
        raise ValueError(f"its shape is {index.shape}")
      if zlib.crc32(index) != self.manifest.index_crc32:
        raise ValueError("its checksum is wrong")
    except Exception as error:  # NumPy reads the header by Python's parser, and raises as it does
      raise KdjaxError(f"{path} is damaged ({error}); delete it and {AGAIN}") from None
    return index
