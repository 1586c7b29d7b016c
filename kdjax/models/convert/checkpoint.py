"""What a checkpoint of another library is: a config, and tensors that are read one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import KdjaxError


class Stored(NamedTuple):
  """A tensor on disk: `rows(start, stop)` reads a part along its first axis."""

  shape: tuple[int, ...]
  dtype: np.dtype
  rows: Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint in the names and layouts of Hugging Face transformers. Nothing is held in memory.

  Attributes:
    path: the folder or the GGUF file.
    config: what config.json holds; for GGUF the same fields, made from its metadata.
    tensors: by name, that of `mapping.py` where a tensor goes by several.
  """

  path: Path
  config: dict[str, Any]
  tensors: Mapping[str, Stored]

  @property
  def names(self) -> frozenset[str]:
    return frozenset(self.tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._stored(name).shape

  def dtype(self, name: str) -> np.dtype:
    """What `read` returns: bfloat16 is that of ml_dtypes, and quantised tensors are float32."""
    return self._stored(name).dtype

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor, and nothing else, from disk."""
    stored = self._stored(name)
    return stored.rows(0, stored.shape[0] if stored.shape else 1).reshape(stored.shape)

  def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Reads rows start..stop-1 along the first axis of one tensor."""
    stored = self._stored(name)
    if not stored.shape or not 0 <= start <= stop <= stored.shape[0]:
      raise KdjaxError(f"{self.path}: {name} {list(stored.shape)} has no rows {start} to {stop}")
    return stored.rows(start, stop)

  def _stored(self, name: str) -> Stored:
    if name not in self.tensors:
      raise KdjaxError(f"{self.path} has no tensor {name!r}")
    return self.tensors[name]
