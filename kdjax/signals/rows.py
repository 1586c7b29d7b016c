"""Sources whose rows come with the signals that a cache holds for them.

A row is made of examples, each at a span of its positions and with a key of its content. So a cache
fits whatever order or packing its examples come in. `kdjax.data` packs text into such rows;
`ImageRows` gives them to image sources.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kdjax.data.base import Example, Source, Span, stack, unstack
from kdjax.errors import KdjaxError
from kdjax.signals.manifest import differences
from kdjax.signals.reader import Cache
from kdjax.signals.records import KEY_BYTES

PREFIX = "signal/"
PROBES = 16


class Rows(Source, Protocol):
  """A source whose rows say what they are made of."""

  def spans(self, position: int) -> Sequence[Span]: ...


class ImageRows:
  """Images as rows of one example each, in one or several random versions.

  Row v * N + i is record i in version v. A key is a hash of the image as stored, and for augmented
  images of version and `index` too, from which alone the augmentation draws.
  """

  def __init__(
    self,
    source: Source,
    change: Callable[[list[Example], np.ndarray], Example] | None = None,
    records: Callable[[Source, np.ndarray], list[Example]] | None = None,
    *,
    versions: int = 1,
  ):
    """Wraps a source.

    Args:
      source: of images.
      change: `change(records, versions) -> batch` augments, a pure function of each row's version
        and `index`; None where images are not augmented.
      records: `records(source, positions)` reads what `change` gets; None for what `source.read`
        gives.
      versions: how many of each image there are; 1 without `change`.
    """
    self._source, self._change, self._versions = source, change, versions
    self._records = records or _read
    self._content = np.zeros((len(source), KEY_BYTES), np.uint8)  # filled in as images are read
    self._index = np.full(len(source), -1, np.int64)

  @property
  def labels(self) -> np.ndarray:
    return np.tile(self._source.labels, self._versions)

  def __len__(self) -> int:
    return len(self._source) * self._versions

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    version, record = np.divmod(np.asarray(positions), len(self._source))
    rows = self._records(self._source, record)
    for row, own in zip(rows, record, strict=True):
      if self._index[own] < 0:
        self._content[own] = np.frombuffer(_content_key(row["image"]), np.uint8)
        self._index[own] = row["index"]
    return stack(rows) if self._change is None else self._change(rows, version)

  def spans(self, position: int) -> list[Span]:
    version, record = divmod(int(position), len(self._source))
    if self._index[record] < 0:
      self.read(np.array([record]))
    key = self._content[record].tobytes()
    if self._change is not None:
      key = _hash(key, struct.pack("<qq", version, self._index[record]))
    return [Span(key, 0, 1)]


class CachedRows:
  """Rows with their signals: `signal/ids` and `signal/values`, or `signal/hidden`.

  They have a fixed shape, [B, T, K] or [B, K]; positions that belong to no example, and slots that
  are not used, weigh nothing.
  """

  def __init__(
    self,
    source: Rows,
    cache: Cache,
    *,
    length: int | None,
    data: Mapping[str, Any],
    tokenizer: str | None = None,
  ):
    """Wraps a source.

    Args:
      source: whose rows have spans.
      cache: made of the same examples.
      length: positions of a row, T; None for rows of one position without a time axis.
      data: what `Spec.data` would be for this source; must equal what the cache was made of.
      tokenizer: fingerprint of this run's.

    Raises:
      KdjaxError: the cache was made of other data or with another tokenizer.
    """
    self._source, self._cache, self._length, self._data = source, cache, length, dict(data)
    spec = cache.manifest.spec
    saved = {"tokenizer": spec.tokenizer, "data": spec.data}
    if lines := differences(saved, {"tokenizer": tokenizer, "data": dict(data)}):
      raise KdjaxError(
        f"the cache {cache.folder} does not fit this run's data: {'; '.join(lines)}. Cache the"
        " teacher again for these data, or use the config that the cache was made with"
      )
    for position in np.unique(np.linspace(0, len(source) - 1, PROBES).astype(np.int64)):
      self._check(int(position), source.spans(int(position)))

  @property
  def labels(self) -> np.ndarray:
    return self._source.labels

  @property
  def mixture(self) -> Any:
    """The proportions of the source's domains, for `training_stream`; None without."""
    return getattr(self._source, "mixture", None)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def spans(self, position: int) -> Sequence[Span]:
    return self._source.spans(position)

  def read(self, positions: np.ndarray) -> Example:
    batch = self._source.read(positions)
    spans = [self._source.spans(int(position)) for position in positions]
    for position, own in zip(positions, spans, strict=True):
      self._check(int(position), own)
    keys = [key for own in spans for key, _, _ in own]
    parts = iter(self._cache.read(keys))
    arrays = {
      name: np.full((len(spans), self._length or 1) + shape, fill, dtype)
      for name, (shape, dtype, fill) in self._cache.shapes().items()
    }
    for row, own in enumerate(spans):
      for _, start, stop in own:
        for name, values in next(parts).items():
          if len(values) != stop - start:
            raise KdjaxError(
              f"the cache {self._cache.folder} has {len(values)} positions for an example of"
              f" {stop - start}; it was made of other data ({self._told()})"
            )
          arrays[name][row, start:stop] = values
    if self._length is None:
      arrays = {name: values[:, 0] for name, values in arrays.items()}
    return batch | {PREFIX + name: values for name, values in arrays.items()}

  def _check(self, position: int, spans: Sequence[Span]) -> None:
    if (self._cache.find([key for key, _, _ in spans]) < 0).any():
      raise KdjaxError(
        f"row {position} of the training data is not in the cache {self._cache.folder}: it was made"
        f" of other data, or with another tokenizer or sequence length ({self._told()}). Cache the"
        " teacher again for these data"
      )

  def _told(self) -> str:
    spec = self._cache.manifest.spec
    here = f"{self._data}, {len(self)} rows"
    return f"the cache: {spec.source}, {dict(spec.data)}, {spec.rows} rows; this run: {here}"


def _read(source: Source, positions: np.ndarray) -> list[Example]:
  return unstack(source.read(positions))


def _content_key(image: np.ndarray) -> bytes:
  image = np.ascontiguousarray(image)
  return _hash(f"{image.dtype.str}{image.shape}".encode(), image.tobytes())


def _hash(*parts: bytes) -> bytes:
  digest = hashlib.blake2b(digest_size=KEY_BYTES)
  for part in parts:
    digest.update(part)
  return digest.digest()
