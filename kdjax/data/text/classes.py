"""Texts with a class each: one text a row, for encoders."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax.data.base import UNLABELLED, Example
from kdjax.data.labels import split_off
from kdjax.data.text.documents import records, text_of
from kdjax.data.text.python_library import library_docstrings
from kdjax.data.tokenizers import load_tokenizer
from kdjax.errors import KdjaxError, within

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

PARTS = ("task", "general")
SHORTEST = 40  # characters of a docstring that says something


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TextSource:
  """A `Source` of texts, one a row.

  A row is a dict: `tokens` int32 [T]; `segment_ids` int32 [T], 1 for tokens and 0 for padding;
  `positions` int32 [T]; `label` int32, -1 where unknown; `index` int32.

  Attributes:
    tokens: int32 [N, T].
    lengths: int32 [N], tokens of each.
    labels: int32 [N].
  """

  tokens: np.ndarray
  lengths: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    positions = np.asarray(positions, np.int64)
    place = np.broadcast_to(np.arange(self.tokens.shape[1]), self.tokens[positions].shape)
    return {
      "tokens": self.tokens[positions],
      "segment_ids": (place < self.lengths[positions][:, None]).astype(np.int32),
      "positions": place.astype(np.int32),
      "label": self.labels[positions],
      "index": positions.astype(np.int32),
    }


class ClassifiedText(NamedTuple):
  """A data set for the classification of texts.

  Attributes:
    train: texts to learn from; some or all may have no label.
    test: texts to evaluate on.
    num_classes: labels are 0 .. num_classes - 1.
    sequence_length: positions of a row, T.
    tokenizer: what the tokens are of.
    name: for messages and reports.
  """

  train: TextSource
  test: TextSource
  num_classes: int
  sequence_length: int
  tokenizer: PreTrainedTokenizerFast
  name: str


def library_docs(
  *,
  tokenizer: str,
  sequence_length: int,
  part: str = "task",
  classes: int = 10,
  test_fraction: float = 0.25,
  max_texts: int | None = None,
  split_seed: int = 0,
) -> ClassifiedText:
  """Docstrings of Python's library and which of its packages each comes from.

  The classes are the packages (or single modules) with the most docstrings. A text is the docstring
  alone, without the name of what it describes; of equal ones the first is kept.

  Args:
    tokenizer: a path or `package:NAME`; see `kdjax.data.tokenizers.load_tokenizer`.
    sequence_length: positions of a row; longer texts are cut off.
    part: what to learn from: "task", the texts of the classes; or "general", those of all other
      packages, without labels. The texts to evaluate on are the task's in both cases.
    classes: how many packages, at least 2.
    test_fraction: share of each class's texts that are for testing, in (0, 1).
    max_texts: to learn from, the first ones in a random order; None for all.
    split_seed: of that order and of the split.

  Raises:
    KdjaxError: arguments out of range.
  """
  if part not in PARTS:
    raise KdjaxError(f"part = {part!r} does not exist; what does: {', '.join(PARTS)}")
  first: dict[str, str] = {}
  for module, text in library_docstrings():
    if len(text) >= SHORTEST:
      first.setdefault(text, module.split(".")[0])
  counts = collections.Counter(first.values())
  if not 2 <= classes < len(counts):
    raise KdjaxError(f"classes = {classes} must lie between 2 and {len(counts) - 1}")
  largest = sorted(counts, key=lambda package: (-counts[package], package))[:classes]
  label_of = {package: label for label, package in enumerate(sorted(largest))}
  labels = np.array([label_of.get(package, UNLABELLED) for package in first.values()], np.int32)
  texts = np.array(list(first), object)
  _check(sequence_length, max_texts)
  loaded = _tokenizer(tokenizer)
  task = _source(loaded, texts[labels >= 0], labels[labels >= 0], sequence_length)
  with within("test_fraction"):
    rest, held = split_off(task, test_fraction, split_seed)
  train = _rows(task, rest.positions)
  if part == "general":
    train = _source(loaded, texts[labels < 0], labels[labels < 0], sequence_length)
  order = np.random.default_rng(split_seed).permutation(len(train))
  train = _rows(train, order[:max_texts])
  test = _rows(task, held.positions)
  return ClassifiedText(train, test, classes, sequence_length, loaded, "library_docs")


def labelled_text(
  *,
  tokenizer: str,
  sequence_length: int,
  train: str,
  test: str,
  num_classes: int,
  text: str = "text",
  label: str = "label",
) -> ClassifiedText:
  """Texts and their classes in JSONL files.

  Args:
    tokenizer: a path or `package:NAME`; see `kdjax.data.tokenizers.load_tokenizer`.
    sequence_length: positions of a row; longer texts are cut off.
    train: a JSONL file, or a folder of them, of objects with a text and, where it is known, its
      label. Without labels the texts are general ones, for objectives that read none.
    test: the same, to evaluate on; every label is wanted.
    num_classes: labels are 0 .. num_classes - 1.
    text: field of the text.
    label: field of the label, an integer.

  Raises:
    KdjaxError: files that are missing or damaged, labels out of range.
  """
  _check(sequence_length, None)
  if num_classes < 2:
    raise KdjaxError(f"num_classes = {num_classes} must be at least 2")
  loaded = _tokenizer(tokenizer)
  sources = []
  for name, path in (("train", train), ("test", test)):
    texts, labels = [], []
    with within(name):
      for where, record in records(path):
        own = record.get(label, UNLABELLED)
        known = type(own) is int and 0 <= own < num_classes
        if not known and (label in record or name == "test"):
          raise KdjaxError(
            f"{where}: {label!r} is {own!r}; an integer from 0 to {num_classes - 1} is wanted"
          )
        texts.append(text_of(record, text, where))
        labels.append(own)
      if not texts:
        raise KdjaxError(f"{path} holds no text; give a file with at least one line")
    sources.append(_source(loaded, texts, np.array(labels, np.int32), sequence_length))
  return ClassifiedText(*sources, num_classes, sequence_length, loaded, "labelled_text")


def _check(sequence_length: int, max_texts: int | None) -> None:
  for name, value in (("sequence_length", sequence_length), ("max_texts", max_texts)):
    if value is not None and value < 1:
      raise KdjaxError(f"{name} = {value} must be at least 1")


def _tokenizer(path: str) -> PreTrainedTokenizerFast:
  with within("tokenizer"):
    return load_tokenizer(path)


def _source(
  tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], labels: np.ndarray, length: int
) -> TextSource:
  """The texts as rows, with the tokens that the tokenizer puts around each."""
  ids: Sequence[Sequence[int]] = tokenizer(
    list(texts), truncation=True, max_length=length, padding=False
  )["input_ids"]
  tokens = np.zeros((len(ids), length), np.int32)
  for row, own in zip(tokens, ids, strict=True):
    row[: len(own)] = own
  return TextSource(tokens, np.array([len(own) for own in ids], np.int32), labels)


def _rows(source: TextSource, positions: np.ndarray) -> TextSource:
  return TextSource(*(array[positions] for array in (source.tokens, source.lengths, source.labels)))
