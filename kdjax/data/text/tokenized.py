"""Documents as tokens, made once and kept on the disk as flat arrays that are mapped, not read.

A folder has `tokens.bin` (int32), `offsets.bin` (int64, one more than documents), `keys.bin` (16
bytes a document, a hash of its text), `weights.bin` (float32, only where one is not 1), `ends.bin`
(int32, only where asked for), all little-endian, and `manifest.json`. It appears under its name
only when it is complete.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.data.text.alignment import UNKNOWN, byte_ends
from kdjax.data.text.chat import marked_tokens, marks_answers, rendered
from kdjax.data.text.documents import Document, Documents
from kdjax.data.tokenizers import fingerprint as fingerprint_of
from kdjax.data.tokenizers import is_byte_level
from kdjax.errors import KdjaxError, reading, writing
from kdjax.parsing import parse_json

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
KEY_BYTES = 16
TOKEN, OFFSET, WEIGHT = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<f4")
_DOCUMENTS, _CHARACTERS = 256, 1 << 20  # handed to the tokenizer at a time


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Token sequences of documents; arrays are mapped from the disk when they are first used.

  Attributes:
    folder: where they lie.
    manifest: what they were made of, and `documents`, `tokens`, `empty`, `weighted`.
  """

  folder: Path
  manifest: Mapping[str, Any]

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    """int32 [tokens]."""
    return self._array("tokens.bin", TOKEN)

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """int64 [documents + 1]: where each document begins."""
    return self._array("offsets.bin", OFFSET)

  @functools.cached_property
  def weights(self) -> np.ndarray | None:
    """float32 [tokens], of the loss on predicting each; None where all are 1."""
    return self._array("weights.bin", WEIGHT) if self.manifest["weighted"] else None

  @functools.cached_property
  def ends(self) -> np.ndarray:
    """int32 [tokens], of each in the bytes of its document; see `alignment.byte_ends`."""
    return self._array("ends.bin", TOKEN)

  @functools.cached_property
  def keys(self) -> np.ndarray:
    """16 bytes a document: equal texts have equal keys."""
    return self._array("keys.bin", np.dtype(f"V{KEY_BYTES}"))

  def __reduce__(self):
    # A copy in another process maps the files itself.
    return Tokenized, (self.folder, self.manifest)

  def _array(self, name: str, dtype: np.dtype) -> np.ndarray:
    with reading(self.folder / name, "delete the folder, and it is made again"):
      return np.memmap(self.folder / name, dtype, "r")


def tokenize(
  documents: Documents,
  tokenizer: PreTrainedTokenizerFast,
  *,
  cache: str | Path = "",
  add_eos: bool = True,
  max_documents: int | None = None,
  max_tokens: int | None = None,
  ends: bool = False,
  fingerprint: str | None = None,
) -> Tokenized:
  """Tokens of documents, from the cache where they are there already.

  Empty documents are left out. A token has the loss weight of the character that it begins with.

  Args:
    documents: what to read.
    tokenizer: what cuts them; it puts the tokens around a text that it is set to put there.
    cache: folder for results; else $KDJAX_CACHE, else ~/.cache/kdjax.
    add_eos: whether a document (not a chat, where the template decides) ends with the tokenizer's
      end token, where it has one.
    max_documents: the first so many.
    max_tokens: ends with the document that reaches this number.
    ends: also keep where each token ends, for alignment with another tokenizer; not for chats,
      which every tokenizer writes out in its own way.
    fingerprint: of the tokenizer, where it is known.

  Returns:
    The tokens.

  Raises:
    KdjaxError: no document with text, a document that cannot be read, a disk that is full.
  """
  template = tokenizer.chat_template if documents.chat else None
  recipe = {
    "format": FORMAT,
    "source": documents.identity,
    "tokenizer": fingerprint or fingerprint_of(tokenizer),
    "chat_template": template and hashlib.sha256(str(template).encode()).hexdigest(),
    "add_eos": add_eos and not documents.chat,
    "max_documents": max_documents,
    "max_tokens": max_tokens,
  } | ({"ends": True} if ends else {})
  recipe = json.loads(json.dumps(recipe))  # as the manifest gives it back
  name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]
  root = _cache_root(cache)
  with writing(root):
    root.mkdir(parents=True, exist_ok=True)
  if (kept := _open(root / name, recipe)) is not None:
    return kept
  with writing(root):
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
      _write(scratch, documents, tokenizer, recipe)
      _publish(scratch, root / name, recipe)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)
  made = _open(root / name, recipe)
  if made is None:
    raise KdjaxError(f"{root / name} was damaged while it was opened; run the same command again")
  return made


def _cache_root(cache: str | Path) -> Path:
  root = cache or os.environ.get("KDJAX_CACHE") or "~/.cache/kdjax"
  return Path(root).expanduser() / "text"


def _open(folder: Path, recipe: Mapping[str, Any]) -> Tokenized | None:
  """What lies there, if it is whole and of this recipe."""
  try:
    manifest = parse_json((folder / MANIFEST).read_text())
    tokens, documents = manifest["tokens"], manifest["documents"]
    sizes = {
      "tokens.bin": tokens * TOKEN.itemsize,
      "offsets.bin": (documents + 1) * OFFSET.itemsize,
      "keys.bin": documents * KEY_BYTES,
    }
    if manifest["weighted"]:
      sizes["weights.bin"] = tokens * WEIGHT.itemsize
    if recipe.get("ends"):
      sizes["ends.bin"] = tokens * TOKEN.itemsize
    whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
  except (OSError, ValueError, KeyError, TypeError):
    return None
  fits = whole and {key: manifest.get(key) for key in recipe} == recipe
  return Tokenized(folder, manifest) if fits else None


def _publish(scratch: Path, folder: Path, recipe: Mapping[str, Any]) -> None:
  """Gives the folder its name, unless another process was faster."""
  try:
    os.rename(scratch, folder)
  except OSError:  # something has the name
    if _open(folder, recipe) is not None:
      return
    damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    os.rename(folder, damaged / "damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    os.rename(scratch, folder)


def _write(
  folder: Path,
  documents: Documents,
  tokenizer: PreTrainedTokenizerFast,
  recipe: Mapping[str, Any],
) -> None:
  offsets, empty, weighted = [0], 0, False
  with (
    open(folder / "tokens.bin", "wb") as tokens_file,
    open(folder / "weights.bin", "wb") as weights_file,
    open(folder / "keys.bin", "wb") as keys_file,
    open(folder / "ends.bin", "wb") as ends_file,
  ):
    for document, tokens, weights, ends in _encoded(documents, tokenizer, recipe):
      if document is None:
        empty += 1
        continue
      if weights is not None and not weighted:
        weighted = True
        _ones(weights_file, offsets[-1])
      if weighted:
        own = np.ones(len(tokens), WEIGHT) if weights is None else weights.astype(WEIGHT)
        weights_file.write(own.tobytes())
      tokens_file.write(tokens.astype(TOKEN).tobytes())
      keys_file.write(_key(document))
      if ends is not None:
        ends_file.write(ends.astype(TOKEN).tobytes())
      offsets.append(offsets[-1] + len(tokens))
      if _enough(recipe, len(offsets) - 1, offsets[-1]):
        break
  if empty:
    log.info("%d empty documents were skipped", empty)
  if offsets[-1] == 0:
    raise KdjaxError(
      f"there are no documents with text ({empty} are empty); give another path, or remove the"
      " source"
    )
  np.array(offsets, OFFSET).tofile(folder / "offsets.bin")
  if not weighted:
    os.remove(folder / "weights.bin")
  if not recipe.get("ends"):
    os.remove(folder / "ends.bin")
  counted = {
    "documents": len(offsets) - 1,
    "tokens": offsets[-1],
    "empty": empty,
    "weighted": weighted,
  }
  (folder / MANIFEST).write_text(json.dumps({**recipe, **counted}, indent=1))


def _enough(recipe: Mapping[str, Any], documents: int, tokens: int) -> bool:
  counts = {"max_documents": documents, "max_tokens": tokens}
  return any(recipe[name] is not None and count >= recipe[name] for name, count in counts.items())


def _ones(file: Any, count: int) -> None:
  block = 1 << 20
  for start in range(0, count, block):
    file.write(np.ones(min(block, count - start), WEIGHT).tobytes())


def _key(document: Document) -> bytes:
  return hashlib.blake2b(document.text.encode(), digest_size=KEY_BYTES).digest()


def _encoded(
  documents: Documents, tokenizer: PreTrainedTokenizerFast, recipe: Mapping[str, Any]
) -> Iterator[tuple[Document | None, np.ndarray, np.ndarray | None, np.ndarray | None]]:
  """(document, tokens, weights or None where all are 1, ends where asked for).

  None for a document without text.
  """
  nothing = np.zeros(0, TOKEN)
  marked = documents.chat and marks_answers(tokenizer)
  for group in _groups(_told(documents), recipe["max_documents"] or _DOCUMENTS):
    full = [d for d in group if d.text.strip() or d.messages]
    yield from ((None, nothing, None, None) for _ in range(len(group) - len(full)))
    if marked:
      for document in full:
        tokens, weights = marked_tokens(document, tokenizer)
        text = tokenizer.decode(tokens)
        document = document._replace(text=text)
        yield document, np.array(tokens, TOKEN), np.array(weights, WEIGHT), None
      continue
    if documents.chat:
      full = [rendered(document, tokenizer) for document in full]
    for document in full:
      _check_characters(document)
    if full:
      around, add_eos = not documents.chat, recipe["add_eos"]
      ends = recipe.get("ends", False)
      yield from _tokens_of(full, tokenizer, around=around, add_eos=add_eos, with_ends=ends)


def _told(documents: Documents) -> Iterator[Document]:
  try:
    yield from documents.read()
  except OSError as error:  # around this, one would be taken for a disk that cannot be written
    raise KdjaxError(f"cannot read {error.filename}: {error.strerror or error}") from None


def _groups(documents: Iterable[Document], most: int) -> Iterator[list[Document]]:
  group, characters = [], 0
  for document in documents:
    group.append(document)
    characters += len(document.text)
    if len(group) >= min(most, _DOCUMENTS) or characters >= _CHARACTERS:
      yield group
      group, characters = [], 0
  if group:
    yield group


def _tokens_of(
  documents: list[Document],
  tokenizer: PreTrainedTokenizerFast,
  *,
  around: bool,
  add_eos: bool,
  with_ends: bool,
) -> Iterator[tuple[Document, np.ndarray, np.ndarray | None, np.ndarray | None]]:
  weighed = any(document.weights for document in documents)
  coded = tokenizer(
    [document.text for document in documents],
    add_special_tokens=around,
    return_attention_mask=False,
    return_token_type_ids=False,
    return_offsets_mapping=weighed or with_ends,
    verbose=False,
  )
  eos = tokenizer.eos_token_id if add_eos else None
  byte_level = with_ends and is_byte_level(tokenizer)
  for place, document in enumerate(documents):
    tokens = np.array(coded["input_ids"][place], TOKEN)
    weights = ends = None
    if weighed or with_ends:
      offsets = np.array(coded["offset_mapping"][place]).reshape(-1, 2)
    if document.weights:
      weights = _token_weights(document, offsets)
    if eos is not None and (not len(tokens) or tokens[-1] != eos):
      tokens = np.append(tokens, TOKEN.type(eos))
      if weights is not None:
        weights = np.append(weights, weights[-1:] if len(weights) else WEIGHT.type(1))
    if with_ends:
      ends = _ends(document.text, tokens, offsets, tokenizer, byte_level)
    yield document, tokens, weights, ends


def _ends(text: str, tokens: np.ndarray, offsets: np.ndarray, tokenizer, byte_level: bool):
  """Where each token ends; what stands behind a text ends one byte after it, as its end would."""
  offsets = np.concatenate([offsets, np.zeros((len(tokens) - len(offsets), 2), offsets.dtype)])
  ends = byte_ends(text, offsets, tokenizer.convert_ids_to_tokens(tokens), byte_level)
  behind = len(tokens) - int((offsets[::-1, 1] > 0).argmax()) if offsets[:, 1].any() else 0
  if behind < len(tokens):
    ends[behind:] = UNKNOWN
    ends[-1] = len(text.encode()) + 1
  return ends


def _token_weights(document: Document, offsets: np.ndarray) -> np.ndarray | None:
  text, own = document.text, np.ones(len(document.text), WEIGHT)
  for start, stop, weight in document.weights:
    own[start:stop] = weight
  if (own == 1).all():
    return None
  # What the tokenizer puts behind a text belongs to no character, and goes with the last one.
  behind = (offsets[:, 1] == 0) & (np.arange(len(offsets)) > 0)
  return own[np.where(behind, len(text) - 1, np.minimum(offsets[:, 0], len(text) - 1))]


def _check_characters(document: Document) -> None:
  try:
    document.text.encode()
  except UnicodeEncodeError as error:
    raise KdjaxError(
      f"{document.where} has half of a surrogate pair (character {error.start}), which is not"
      " Unicode text; replace it"
    ) from None
