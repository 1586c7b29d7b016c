"""What `config.teacher_hacking` says: oracle, prompts, and where students' texts come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError, within
from kdjax.programs.watched import check_distance
from kdjax.resolve import check_type, hint
from kdjax.train.config import Config

FIELD = "config.teacher_hacking"
FIELDS = {
  "oracle": Mapping,
  "sft": Mapping,
  "sources": Mapping,
  "baseline": str,
  "prompt_length": int,
  "oracle_prompts": int,
  "prompts": int,
  "test_rows": int,
  "drawn_from": str,
  "divergence": str,
}
WRITERS = ("teacher", "student")


class Source(NamedTuple):
  """Where a student's texts come from.

  Attributes:
    writer: "teacher" or "student".
    online: a new text each time that a prompt comes; else each has been written once.
    generations: texts for each prompt, where they are written once.
    prompts: how many; None for `config.teacher_hacking.prompts`.
  """

  writer: str = "teacher"
  online: bool = False
  generations: int = 1
  prompts: int | None = None


def checked(config: Config) -> tuple[Mapping[str, Any], dict[str, Source]]:
  """(`config.teacher_hacking`, its sources).

  Raises:
    KdjaxError: fields that are missing, do not exist, are of another type or do not fit.
  """
  spec = config["teacher_hacking"]
  for name in spec:
    if name not in FIELDS:
      raise KdjaxError(f"{FIELD}.{name} does not exist{hint(name, FIELDS)}")
  for name, kind in FIELDS.items():
    if name not in spec:
      raise KdjaxError(f"{FIELD}.{name} is missing; see configs/teacher_hacking.py")
    if kind is Mapping:
      if not isinstance(spec[name], Mapping):
        raise KdjaxError(f"{FIELD}.{name} = {spec[name]!r} must have fields of its own")
    else:
      check_type(spec[name], kind, f"{FIELD}.{name}")
    if kind is int and spec[name] < 1:
      raise KdjaxError(f"{FIELD}.{name} = {spec[name]} must be at least 1")
  with within(FIELD):
    check_distance(spec["drawn_from"], spec["divergence"])
  if config["teacher"].get("kind") != "frozen":
    raise KdjaxError(f"{FIELD}: config.teacher.kind must be 'frozen', a model that is trained")
  if not spec["sources"]:
    raise KdjaxError(f"{FIELD}.sources is empty; give at least one")
  sources = {}
  for name, own in spec["sources"].items():
    field = f"{FIELD}.sources.{name}"
    if name in ("student",) or not isinstance(own, Mapping):
      raise KdjaxError(f"{field} = {own!r} must be a mapping, under another name than 'student'")
    for key in own:
      if key not in Source._fields:
        raise KdjaxError(f"{field}.{key} does not exist{hint(key, Source._fields)}")
    source = Source(**own)
    if source.writer not in WRITERS:
      raise KdjaxError(f"{field}.writer = {source.writer!r} does not exist{hint('', WRITERS)}")
    if source.writer == "student" and not source.online:
      raise KdjaxError(f"{field}: the student changes, so that its texts are online; set online")
    if source.online and source.generations != 1:
      raise KdjaxError(f"{field}.generations is for texts that are written once; leave it out")
    for key in ("generations", "prompts"):
      value = getattr(source, key)
      if value is not None and (not isinstance(value, int) or value < 1):
        raise KdjaxError(f"{field}.{key} = {value!r} must be an integer of at least 1")
    sources[name] = source
  if spec["baseline"] not in sources:
    told = hint(spec["baseline"], sources)
    raise KdjaxError(f"{FIELD}.baseline = {spec['baseline']!r} is none of the sources{told}")
  return spec, sources
