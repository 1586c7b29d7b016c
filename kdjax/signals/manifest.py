"""What a cache says about itself, and whether it is the one that is wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.parsing import parse_json
from kdjax.signals import codec

KINDS = ("sampled", "top_k", "hidden")
MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT = "kdjax.signals"


@dataclasses.dataclass(frozen=True)
class Spec:
  """What makes a cache the cache that it is: known before anything is computed.

  Attributes:
    kind: "sampled", "top_k" or "hidden".
    vocab: V, the classes that the teacher chose from.
    support: draws a position (sampled), classes a position (top_k) or width (hidden).
    temperature: of the stored distribution; None for hidden.
    dtype: of stored hidden states; None for the others.
    softcap: of the logits of a head of hidden states; None without.
    seed: of the draws; None for the others.
    teacher: SHA-256 of the teacher's weights.
    tokenizer: SHA-256 of the tokenizer; None for images.
    source: name of the data, for messages.
    data: sequence length, or augmentations with their seed and number of versions: what must be
      equal for records to be found; plain JSON.
    rows: rows of the data, each version of an augmented image one of them.
    rows_per_shard: rows whose examples lie in one file.
  """

  kind: str
  vocab: int
  support: int
  temperature: float | None
  dtype: str | None
  softcap: float | None
  seed: int | None
  teacher: str
  tokenizer: str | None
  source: str
  data: Mapping[str, Any]
  rows: int
  rows_per_shard: int

  @property
  def num_shards(self) -> int:
    return -(-self.rows // self.rows_per_shard)

  def shard_name(self, number: int) -> str:
    return f"signals-{number:05d}-of-{self.num_shards:05d}.array_record"

  def as_json(self) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A finished cache.

  Attributes:
    spec: what it is.
    slots: most classes that any position of a sampled cache holds; `support` for the others.
    examples: records.
    positions: of all examples together.
    bytes: of all shards and the index; ArrayRecord pads a file to 64 KiB and adds as much.
    record_bytes: of the records alone: key, checksum and payload of each.
    shards: name, examples, bytes and SHA-256 of each.
    index_crc32: of the index.
    head_sha256: of the head's file, for hidden.
  """

  spec: Spec
  slots: int
  examples: int
  positions: int
  bytes: int
  record_bytes: int
  shards: tuple[Mapping[str, Any], ...]
  index_crc32: int
  head_sha256: str | None = None

  @property
  def bytes_per_position(self) -> float:
    return self.record_bytes / max(self.positions, 1)

  def as_json(self) -> dict[str, Any]:
    own = dataclasses.asdict(self)
    del own["spec"]
    derived = {"bytes_per_position": round(self.bytes_per_position, 3)}
    return self.spec.as_json() | json.loads(json.dumps(own)) | derived


def read_manifest(folder: Path) -> Manifest:
  """The manifest of a finished cache.

  Raises:
    KdjaxError: no finished cache there, or one of another format.
  """
  path = Path(folder) / MANIFEST
  if not path.is_file():
    state = "an unfinished cache" if (Path(folder) / PLAN).is_file() else "no cache of signals"
    raise KdjaxError(
      f"{folder} holds {state} ({MANIFEST} is missing); run launch.cache_teacher with this --out to"
      " its end"
    )
  fields = read_json(path)
  fields.pop("bytes_per_position", None)
  try:
    spec = Spec(**{field.name: fields.pop(field.name) for field in dataclasses.fields(Spec)})
    return _sound(Manifest(spec=spec, **(fields | {"shards": tuple(fields["shards"])})))
  except (KeyError, TypeError, ValueError) as error:
    raise KdjaxError(f"{path} is damaged ({error}); write the cache again") from None


def _sound(manifest: Manifest) -> Manifest:
  """The manifest; ValueError where a field is of another kind than what was written."""
  kinds = {"str": str, "int": int, "str | None": str | None, "int | None": int | None}
  for part in (manifest.spec, manifest):
    for field in dataclasses.fields(part):
      value = getattr(part, field.name)
      if field.type in kinds and not isinstance(value, kinds[field.type]):
        raise ValueError(f"{field.name} is {value!r}")
  if manifest.spec.kind not in KINDS or manifest.spec.rows_per_shard < 1:
    raise ValueError(
      f"kind is {manifest.spec.kind!r}, rows_per_shard {manifest.spec.rows_per_shard}"
    )
  for shard in manifest.shards:
    wanted = {"name": str, "examples": int, "bytes": int, "sha256": str}
    if not isinstance(shard, dict):
      raise ValueError(f"a shard is {shard!r}")
    if wrong := [name for name, kind in wanted.items() if not isinstance(shard.get(name), kind)]:
      raise ValueError(f"{wrong[0]} of a shard is {shard.get(wrong[0])!r}")
    # A manifest names files beside itself and no others.
    if Path(shard["name"]).name != shard["name"]:
      raise ValueError(f"a shard is named {shard['name']!r}")
  if sum(shard["examples"] for shard in manifest.shards) != manifest.examples:
    raise ValueError(f"its shards do not hold the {manifest.examples} examples that it tells of")
  return manifest


def claim(folder: Path, spec: Spec, *, write: bool) -> None:
  """Makes a folder the place of a cache, or checks that it already is this one's.

  Args:
    folder: made where it is not there.
    spec: what will be written.
    write: whether this process is the one that writes the plan.

  Raises:
    KdjaxError: the folder holds another cache; names the fields that differ.
  """
  for path in (folder / MANIFEST, folder / PLAN):
    if path.is_file():
      saved, wanted = read_json(path), spec.as_json()
      if lines := differences(saved, wanted):
        raise KdjaxError(
          f"{folder} holds another cache: {'; '.join(lines)}. Use the same settings to go on with"
          " it, or another --out to start anew"
        )
      return
  if write:
    with storing(folder):
      folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, spec.as_json())


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """The fields of `wanted` that differ, as "field: saved X, now Y"; `data` field by field."""

  def flat(fields):
    inner = fields.get("data") if isinstance(fields.get("data"), Mapping) else {}
    return {k: v for k, v in fields.items() if k != "data"} | {
      f"data.{k}": v for k, v in inner.items()
    }

  saved, wanted = flat(saved), flat(wanted)
  names = [*wanted, *(name for name in saved if name.startswith("data.") and name not in wanted)]
  return [
    f"{name}: saved {saved.get(name)!r}, now {wanted.get(name)!r}"
    for name in names
    if saved.get(name) != wanted.get(name)
  ]


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
  """Writes a file that is there whole or not at all, with its format in front."""
  header = {"format": FORMAT, "version": codec.VERSION}
  scratch = path.with_name(path.name + ".tmp")
  with storing(path):
    scratch.write_text(json.dumps(header | dict(fields), indent=2) + "\n")
    scratch.replace(path)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
  """Makes a full or broken disk a KdjaxError that names what was written."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    reason = getattr(error, "strerror", None) or error
    raise KdjaxError(
      f"cannot write {path}: {reason}. Free space or mend the disk and run the same command again;"
      " finished shards are kept"
    ) from None


def read_json(path: Path) -> dict[str, Any]:
  """What `write_json` wrote.

  Raises:
    KdjaxError: a damaged file, or one of another format.
  """
  try:
    fields = parse_json(path.read_text())
  except (OSError, ValueError) as error:
    raise KdjaxError(f"{path} is damaged ({error}); write the cache again") from None
  if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
    raise KdjaxError(f"{path} does not belong to a cache of signals")
  if (version := fields.pop("version", None)) != codec.VERSION:
    raise KdjaxError(
      f"{path} is of format {version}; this version reads {codec.VERSION}. Write the cache again"
    )
  return fields
