"""Documents from files: folders of text, JSONL, Parquet, chats. Nothing is kept in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError
from kdjax.parsing import parse_json
from kdjax.paths import locate

Message = Mapping[str, str]


class Document(NamedTuple):
  """One document.

  Attributes:
    text: its characters; empty for a chat, which a tokenizer's template has to write out.
    where: file and line or record, for messages.
    weights: loss weights by character, (start, stop, weight); what lies in none weighs 1.
    messages: of a chat; None for plain text.
  """

  text: str
  where: str
  weights: tuple[tuple[int, int, float], ...] = ()
  messages: Sequence[Message] | None = None


class Documents(NamedTuple):
  """A collection of documents that can be read again and again, in one order.

  Attributes:
    read: `read()` starts an iterator of `Document`.
    identity: plain JSON that changes when the documents may have changed.
    chat: whether they are chats: each is one example, and only its answers are learnt.
  """

  read: Callable[[], Iterator[Document]]
  identity: Mapping[str, Any]
  chat: bool = False


def text_folder(path: str | Path, glob: str = "**/*.txt") -> Documents:
  """The files of a folder, one document each, sorted by name.

  Raises:
    KdjaxError: no such folder, or no file in it that fits `glob`.
  """
  folder = locate(path)
  if not folder.is_dir():
    raise KdjaxError(f"{folder} is a file; a folder of text files is wanted")
  files = files_of(folder, glob)

  def read() -> Iterator[Document]:
    for file in files:
      yield Document(decoded(file.read_bytes(), str(file)), str(file))

  return Documents(read, {"kind": "folder"} | identity_of(folder, files))


def jsonl(path: str | Path, field: str = "text") -> Documents:
  """Documents in the lines of a JSONL file, or of all *.jsonl in a folder.

  A line is an object with the text in `field`; or with `spans`, a list of {"text": ..., "weight":
  w}, whose texts together are the document and whose weights (>= 0) are those of the loss.

  Raises:
    KdjaxError: no such file; when read, a line that is something else.
  """
  root, files = _file_or_folder(path, "*.jsonl")

  def read() -> Iterator[Document]:
    for where, record in _records(files):
      if "spans" in record:
        yield _joined(record["spans"], where)
      else:
        yield Document(_text(record, field, where), where)

  return Documents(read, {"kind": "jsonl", "field": field} | identity_of(root, files))


def chat(path: str | Path, field: str = "messages") -> Documents:
  """Chats in the lines of a JSONL file, or of all *.jsonl in a folder.

  A line is an object with a list of {"role": ..., "content": ...} in `field`.

  Raises:
    KdjaxError: no such file; when read, a line that is something else.
  """
  root, files = _file_or_folder(path, "*.jsonl")

  def read() -> Iterator[Document]:
    for where, record in _records(files):
      messages = _present(record, field, where)
      well_formed = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
      )
      if not well_formed:
        raise KdjaxError(
          f"{where}: {field!r} must be a list of messages, each with a role and a content, both"
          f" strings; it is {_short(messages)}"
        )
      yield Document("", where, messages=messages)

  return Documents(read, {"kind": "chat", "field": field} | identity_of(root, files), chat=True)


def parquet(path: str | Path, field: str = "text") -> Documents:
  """Documents in a string column of a Parquet file, or of all *.parquet in a folder.

  Raises:
    KdjaxError: no such file; when read, a damaged file or no such column of strings.
  """
  root, files = _file_or_folder(path, "*.parquet")

  def read() -> Iterator[Document]:
    for file in files:
      yield from _parquet_file(file, field)

  return Documents(read, {"kind": "parquet", "field": field} | identity_of(root, files))


def records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where it stands, object) of each line of a JSONL file, or of all *.jsonl in a folder.

  Raises:
    KdjaxError: no such file; when read, a line that is no JSON object.
  """
  return _records(_file_or_folder(path, "*.jsonl")[1])


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
  """The string in a field of a record; KdjaxError where there is none."""
  return _text(record, field, where)


def decoded(data: bytes, where: str) -> str:
  """UTF-8 as text; what is not UTF-8 is told with its place."""
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise KdjaxError(
      f"{where} is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}); convert it, such as"
      " with `iconv -f latin1 -t utf-8`, or leave it out"
    ) from None


def files_of(folder: Path, glob: str) -> list[Path]:
  """Files of a folder, sorted by name; KdjaxError where there are none."""
  try:
    files = sorted(file for file in folder.glob(glob) if file.is_file())
  except (ValueError, NotImplementedError) as error:
    raise KdjaxError(f"the pattern {glob!r} cannot be used: {error}") from None
  if not files:
    raise KdjaxError(f"{folder} has no file {glob!r}; give another path or pattern")
  return files


def identity_of(root: Path, files: Sequence[Path]) -> dict[str, Any]:
  """Number of files and a hash of their names, sizes and times of change."""
  digest = hashlib.sha256()
  for file in files:
    status = file.stat()
    name = file.relative_to(root).as_posix()
    digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
  return {"files": len(files), "sha256": digest.hexdigest()}


def _file_or_folder(path: str | Path, glob: str) -> tuple[Path, list[Path]]:
  found = locate(path)
  return (found, files_of(found, glob)) if found.is_dir() else (found.parent, [found])


def _records(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
  for file in files:
    with open(file, "rb") as lines:
      for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        text = decoded(line, where)
        if not text.strip():
          continue
        try:
          record = parse_json(text)
        except ValueError as error:
          raise KdjaxError(f"{where} is no JSON ({error}); correct or remove the line") from None
        if not isinstance(record, dict):
          raise KdjaxError(f"{where} is {_short(record)}; an object is wanted")
        yield where, record


def _present(record: Mapping[str, Any], field: str, where: str) -> Any:
  if field not in record:
    raise KdjaxError(
      f"{where} has no field {field!r}; it has {', '.join(sorted(record)) or 'none'}. Set `field`"
    )
  return record[field]


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
  text = _present(record, field, where)
  if not isinstance(text, str):
    raise KdjaxError(f"{where}: {field!r} is {_short(text)}; a string is wanted")
  return text


def _joined(spans: Any, where: str) -> Document:
  if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
    raise KdjaxError(
      f'{where}: \'spans\' is {_short(spans)}; a list of {{"text": ..., "weight": w}} is wanted'
    )
  texts, weights, start = [], [], 0
  for span in spans:
    text, weight = _text(span, "text", where), span.get("weight", 1)
    if type(weight) not in (int, float) or not (math.isfinite(weight) and weight >= 0):
      raise KdjaxError(f"{where}: a span has the weight {weight!r}; a number >= 0 is wanted")
    texts.append(text)
    weights.append((start, start + len(text), float(weight)))
    start += len(text)
  return Document("".join(texts), where, tuple(weights))


def _parquet_file(file: Path, field: str) -> Iterator[Document]:
  # Imported here: it takes time that other data need not pay for.
  import pyarrow
  import pyarrow.parquet

  row = 0
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      if field not in table.schema_arrow.names:
        raise KdjaxError(
          f"{file} has no column {field!r}; it has {', '.join(table.schema_arrow.names)}. Set"
          " `field`"
        )
      kind = table.schema_arrow.field(field).type
      if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise KdjaxError(f"{file}: the column {field!r} holds {kind}; strings are wanted")
      for batch in table.iter_batches(batch_size=1024, columns=[field]):
        for value in batch.column(0).cast(pyarrow.large_binary()):
          where = f"{file}, record {row}"
          # A record without a value is an empty document.
          yield Document(decoded(value.as_py() or b"", where), where)
          row += 1
  except (pyarrow.ArrowException, OSError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise KdjaxError(f"{file} is no readable Parquet file ({reason}); write it again") from None


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
