"""Checkpoints written for other libraries: Hugging Face folders, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdjax.errors import KdjaxError, writing
from kdjax.models.convert import safetensor
from kdjax.models.convert.files import INDEX, WHOLE

MANIFEST = "kdjax_export.json"  # lists the files of an export, so that a later one may replace them


class Tensor(Protocol):
  """What `write_checkpoint` needs to know of a tensor; `read` is called when its turn comes."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def write_checkpoint(
  folder: str | Path,
  config: Mapping[str, Any],
  tensors: Iterable[Tensor],
  *,
  shard_bytes: int = 5_000_000_000,
  generation_config: Mapping[str, Any] | None = None,
  tokenizer: Any = None,
) -> Path:
  """Writes a folder that `from_pretrained` of transformers loads, and `open_checkpoint` too.

  All is written to a hidden folder beside it, which gets its name when it is whole: a run that is
  killed leaves no half-made checkpoint, and the next one clears up. One tensor is in memory at a
  time.

  Args:
    folder: to be made; an empty folder or an earlier export is replaced.
    config: the content of config.json.
    tensors: under the names and in the layouts of transformers, each name once.
    shard_bytes: > 0; a file ends before it would exceed this, unless one tensor does.
    generation_config: the content of generation_config.json, where the model generates.
    tokenizer: of transformers, saved with the model.

  Returns:
    The folder.

  Raises:
    KdjaxError: `folder` holds files that no export wrote; a tensor is not what was announced; the
      disk is full.
  """
  folder = Path(folder).expanduser().absolute()
  if shard_bytes <= 0:
    raise KdjaxError(f"shard_bytes = {shard_bytes}, wanted a positive number of bytes")
  shards = _shards(list(tensors), shard_bytes)
  partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
  with writing(folder):
    if old.exists() and not folder.exists():  # killed between the two renames below
      old.rename(folder)
    replaced = _check_replaceable(folder)
    for leftover in (partial, old):
      shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
      _write_files(partial, config, shards, generation_config)
      if tokenizer is not None:
        tokenizer.save_pretrained(str(partial))
      names = sorted(str(path.relative_to(partial)) for path in _files(partial))
      _write_json(partial / MANIFEST, {"files": [*names, MANIFEST]})
      if replaced:
        folder.rename(old)
      partial.rename(folder)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    shutil.rmtree(old, ignore_errors=True)
  return folder


def _shards(tensors: list[Tensor], shard_bytes: int) -> list[list[Tensor]]:
  """Splits the tensors, in order, into files."""
  names = [tensor.name for tensor in tensors]
  if not names or len(set(names)) != len(names):
    raise KdjaxError(
      f"a checkpoint needs tensors, each name once; got {len(names)} tensors with"
      f" {len(set(names))} names"
    )
  shards, filled = [[]], 0
  for tensor in tensors:
    safetensor.dtype_name(np.dtype(tensor.dtype))  # raises before anything is written
    size = _size(tensor)
    if shards[-1] and filled + size > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled += size
  return shards


def _size(tensor: Tensor) -> int:
  return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _check_replaceable(folder: Path) -> bool:
  """Whether there is something to replace; KdjaxError when that is not ours to remove."""
  if not folder.exists():
    return False
  if not folder.is_dir():
    raise KdjaxError(f"{folder} is a file; give another folder to export to")
  try:
    known = {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["files"]}
  except (OSError, ValueError, KeyError, TypeError):
    known = set()
  foreign = [path for path in _files(folder) if str(path.relative_to(folder)) not in known]
  if foreign:
    raise KdjaxError(
      f"{folder} holds {foreign[0].name}, which no earlier export wrote; an export replaces a whole"
      " folder. Give another one, or move its files away"
    )
  return True


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _write_files(
  folder: Path,
  config: Mapping[str, Any],
  shards: list[list[Tensor]],
  generation_config: Mapping[str, Any] | None,
) -> None:
  _write_json(folder / "config.json", config)
  if generation_config is not None:
    _write_json(folder / "generation_config.json", generation_config)
  if len(shards) == 1:
    _write_shard(folder / WHOLE, shards[0])
    return
  shard_of = {}
  for number, shard in enumerate(shards, start=1):
    name = f"model-{number:05}-of-{len(shards):05}.safetensors"
    _write_shard(folder / name, shard)
    shard_of |= dict.fromkeys((tensor.name for tensor in shard), name)
  total = sum(_size(tensor) for shard in shards for tensor in shard)
  _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": shard_of})


def _write_shard(path: Path, tensors: list[Tensor]) -> None:
  with path.open("wb") as file:
    file.write(safetensor.header_of((t.name, tuple(t.shape), np.dtype(t.dtype)) for t in tensors))
    for tensor in tensors:
      array = np.asarray(tensor.read())
      if array.shape != tuple(tensor.shape) or array.dtype != np.dtype(tensor.dtype):
        raise KdjaxError(
          f"the tensor {tensor.name} was announced as {np.dtype(tensor.dtype)}"
          f"{list(tensor.shape)} and is {array.dtype}{list(array.shape)}"
        )
      # As bytes: the buffer protocol does not know bfloat16.
      file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    _to_disk(file)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  with path.open("w", encoding="utf-8") as file:
    json.dump(value, file, indent=2)
    file.write("\n")
    _to_disk(file)


def _to_disk(file: Any) -> None:
  """So that the folder never gets its name before its content is on the disk."""
  file.flush()
  os.fsync(file.fileno())
