"""What a teacher has answered, on disk: a killed generation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from kdjax.data.text.documents import records, text_of
from kdjax.errors import KdjaxError, writing
from kdjax.teachers.text import TextDecoding


def key_of(text: str, template: str, decoding: TextDecoding, teacher: str) -> str:
  """A hash of all that decides an answer: input, template id, decoding and teacher's name."""
  content = hashlib.sha256(text.encode()).hexdigest()
  parts = [content, template, decoding._asdict(), teacher]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
  """Answers by key, in one JSONL file that only grows.

  A last line without its end, as a killed process leaves it, is cut off.

  Args:
    path: of the file; its folder is made.

  Raises:
    KdjaxError: a damaged line, a disk that cannot be written.
  """

  def __init__(self, path: Path):
    self._path = path
    self._found: dict[str, str] = {}
    with writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()
      whole = path.read_bytes()
      if (size := whole.rfind(b"\n") + 1) < len(whole):
        os.truncate(path, size)
    for where, record in records(path):
      self._found[text_of(record, "key", where)] = text_of(record, "response", where)

  def __len__(self) -> int:
    return len(self._found)

  def __contains__(self, key: str) -> bool:
    return key in self._found

  def __getitem__(self, key: str) -> str:
    return self._found[key]

  def add(self, answers: Mapping[str, str]) -> None:
    """Keeps answers, on disk when this returns."""
    if again := answers.keys() & self._found.keys():
      raise KdjaxError(f"{self._path} has {len(again)} of these answers already; read them there")
    rows = (json.dumps({"key": key, "response": text}) for key, text in answers.items())
    with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
      file.write("".join(f"{row}\n" for row in rows))
      file.flush()
      os.fsync(file.fileno())
    self._found |= answers
