"""Checkpoints of other libraries, opened for reading tensor by tensor."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert import safetensor
from kdjax.models.convert.checkpoint import Checkpoint, Stored
from kdjax.models.convert.gguf import open_gguf
from kdjax.models.convert.names import canonical
from kdjax.parsing import parse_json
from kdjax.paths import locate

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Formats whose reading can run code that the file brings along.
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_FORMATS = (
  "what can be read is a Hugging Face folder (config.json with model.safetensors, or with"
  f" {INDEX} and its shards), a *.gguf file, or a folder with one *.gguf file"
)


def open_checkpoint(name: str | Path) -> Checkpoint:
  """Opens a checkpoint: headers are read and checked, tensors stay on disk.

  Args:
    name: a path, or "package:NAME[/PATH]" (see `kdjax.paths.locate`): a Hugging Face folder, a
      GGUF file or a folder with one GGUF file.

  Returns:
    The checkpoint.

  Raises:
    KdjaxError: no such path, an unknown or unsafe format, a missing part, or a damaged file.
  """
  path = locate(name)
  if path.is_file():
    return _open_file(path)
  children = sorted(child for child in path.iterdir() if child.is_file())
  weights = [path / file for file in (WHOLE, INDEX) if (path / file).exists()]
  if weights:
    config = _read_json(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str | None):
      raise KdjaxError(f"{path / 'config.json'}: model_type = {family!r} must be a name")
    tensors = _read_tensors(weights[0])
    try:
      return Checkpoint(path, config, canonical(family, tensors))
    except KdjaxError as error:
      raise KdjaxError(f"{path}: {error}") from None
  found = [child for child in children if child.suffix == ".gguf"]
  if len(found) == 1:
    return _open_file(found[0])
  if found:
    raise KdjaxError(f"{path} holds {len(found)} GGUF files; name one of {_listing(found)}")
  if pickles := [child for child in children if child.suffix in _PICKLES]:
    raise _unsafe(pickles[0])
  raise KdjaxError(f"{path} holds {_listing(children)}: no checkpoint; {_FORMATS}")


def _open_file(path: Path) -> Checkpoint:
  if path.suffix == ".gguf":
    return open_gguf(path)
  if path.suffix in _PICKLES:
    raise _unsafe(path)
  raise KdjaxError(f"{path} is not a checkpoint; {_FORMATS}")


def _read_tensors(path: Path) -> dict[str, Stored]:
  """Of `model.safetensors`, or of the shards that an index names."""
  folder = path.parent
  if path.name == WHOLE:
    return {name: _stored(path, place) for name, place in safetensor.read_header(path).items()}
  shard_of = _read_json(path).get("weight_map")
  if not isinstance(shard_of, dict) or not shard_of:
    raise KdjaxError(f"{path} has no weight_map; copy or download it again")
  # An index comes with the download: it may name files beside itself and no others. Links are
  # followed, as the hub's cache is made of them.
  for shard in {str(shard) for shard in shard_of.values()}:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
      raise KdjaxError(
        f"{path} names the shard {shard!r}; a shard is a *.safetensors file beside it"
      )
  shards = sorted(set(shard_of.values()))
  if absent := [shard for shard in shards if not (folder / shard).is_file()]:
    raise KdjaxError(f"{folder} lacks {', '.join(absent)}, which {path.name} names; download them")
  headers = {shard: safetensor.read_header(folder / shard) for shard in shards}
  if absent := sorted(name for name, shard in shard_of.items() if name not in headers[shard]):
    told = ", ".join(f"{name} ({shard_of[name]})" for name in absent[:8])
    raise KdjaxError(f"{folder}: {len(absent)} tensors are not in the shard named for them: {told}")
  return {name: _stored(folder / shard, headers[shard][name]) for name, shard in shard_of.items()}


def _stored(path: Path, place: safetensor.Place) -> Stored:
  return Stored(place.shape, place.dtype, functools.partial(safetensor.read_rows, path, place))


def _read_json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    raise KdjaxError(f"{path.parent} has no {path.name}; a checkpoint folder needs it")
  try:
    value = parse_json(path.read_bytes())
  except ValueError as error:
    raise KdjaxError(f"{path} is not JSON ({error}); copy or download it again") from None
  if not isinstance(value, dict):
    raise KdjaxError(f"{path} holds {type(value).__name__}, wanted an object")
  return value


def _unsafe(path: Path) -> KdjaxError:
  return KdjaxError(
    f"{path} may be a pickle, which can run code when it is read, and is refused. Convert it to"
    " safetensors (in PyTorch, save_pretrained writes that) and give the new folder"
  )


def _listing(paths: list[Path]) -> str:
  names = [path.name for path in paths]
  return (
    ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
  )
