"""Text for language models: documents of several domains as packed rows to train on and to test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.text.documents import Documents, chat, jsonl, parquet, text_folder
from kdjax.data.text.examples import Examples, cut, learnable
from kdjax.data.text.mixture import Mixture, checked_weights
from kdjax.data.text.packing import PackedRows
from kdjax.data.text.paired import PairedRows, pair_rows, paired
from kdjax.data.text.plan import Plan, plan_concatenated, plan_packed, plan_single
from kdjax.data.text.python_library import python_library
from kdjax.data.text.split import Chosen, distinct_documents, learnable_documents, split
from kdjax.data.text.tokenized import Tokenized, tokenize
from kdjax.data.text.warping import spelled
from kdjax.data.text.words import word_pieces
from kdjax.data.tokenizers import fingerprint, load_tokenizer, shared_tokens, vocab_size
from kdjax.errors import KdjaxError, within
from kdjax.resolve import check_type, hint

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

PACKS = ("pack", "concat", "none")
# What reads a source, by its kind, with the fields it has beside that.
KINDS: dict[str, tuple[Callable[..., Documents], tuple[str, ...]]] = {
  "folder": (text_folder, ("path", "glob")),
  "jsonl": (jsonl, ("path", "field")),
  "parquet": (parquet, ("path", "field")),
  "chat": (chat, ("path", "field")),
  "python": (python_library, ("field",)),
}
PYTHON_LIBRARY = {
  "code": {"kind": "python", "field": "code"},
  "docs": {"kind": "python", "field": "docs"},
}


class Vocabulary(NamedTuple):
  """What a side's tokens are of, as `kdjax.train.build` reads it for a model.

  Attributes:
    num_classes: its size.
    tokenizer: the tokenizer.
    name: for messages.
  """

  num_classes: int
  tokenizer: PreTrainedTokenizerFast
  name: str


class TextData(NamedTuple):
  """A data set for language models.

  Attributes:
    train: rows to learn from.
    test: rows of other documents, to evaluate on.
    validation: rows of yet other documents, for programs that hold some out; None without.
    num_classes: size of the vocabulary; labels are token ids below it.
    sequence_length: positions of a row, T.
    tokenizer: what the tokens are of.
    domains: names; `domain` of a row is an index of them.
    name: for messages and reports.
    teacher: the teacher's vocabulary, where it has one of its own and rows hold its tokens too.
  """

  train: PackedRows | PairedRows
  test: PackedRows | PairedRows
  validation: PackedRows | PairedRows | None
  num_classes: int
  sequence_length: int
  tokenizer: PreTrainedTokenizerFast
  domains: tuple[str, ...]
  name: str
  teacher: Vocabulary | None = None

  @property
  def shared_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `kdjax.data.tokenizers.shared_tokens`."""
    return shared_tokens(self.tokenizer, (self.teacher or self).tokenizer)

  @property
  def word_pieces(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """See `kdjax.data.text.words.word_pieces`."""
    return word_pieces(self.tokenizer)


def text(
  *,
  tokenizer: str,
  sequence_length: int,
  teacher_tokenizer: str = "",
  teacher_sequence_length: int | None = None,
  warped: bool = False,
  sources: Mapping[str, Mapping] | None = None,
  weights: Mapping[str, float] | None = None,
  test_fraction: float = 0.05,
  validation_fraction: float = 0.0,
  max_documents: int | None = None,
  max_tokens: int | None = None,
  pack: str = "pack",
  split_seed: int = 0,
  cache: str = "",
) -> TextData:
  """Text from files, or Python's own library, as rows of tokens.

  Each document is cut into examples of at most `sequence_length` inputs, each token but its first
  being a label once. Tokens are made once and kept in a cache on disk.

  Args:
    tokenizer: a path or `package:NAME`; see `kdjax.data.tokenizers.load_tokenizer`.
    sequence_length: positions of a row.
    teacher_tokenizer: another one, in whose tokens rows hold the same text for the teacher; see
      `kdjax.data.text.paired`. Not for chats, which each tokenizer writes out in its own way.
    teacher_sequence_length: positions of the teacher's rows; None for as many.
    warped: with a teacher's tokenizer, rows also say at which of the teacher's steps the same token
      is told; see `kdjax.data.text.warping`.
    sources: domain to source, a mapping with `kind` and the fields of that kind: "folder" (path,
      glob), "jsonl" (path, field; a record may have `spans`, a list of {text, weight}, instead),
      "parquet" (path, field), "chat" (path, field; only the assistant's answers are learnt, and
      what is longer than a row is cut off), "python" (field: "code", "docs" or "all"). None for
      Python's library, in the domains "code" and "docs". Of documents that are equal, the first one
      of the first domain is kept and the others are left out.
    weights: domain to its share of the training rows, any scale; None reads all rows equally often.
      Rows for testing and validation are read as they are.
    test_fraction: share of each domain's documents that are for testing, in (0, 1).
    validation_fraction: share of the other documents that are held out for validation, in [0, 1).
    max_documents: of each domain, the first ones.
    max_tokens: of each domain; no document is begun after so many.
    pack: "pack" puts whole examples together into rows, "concat" cuts rows out of all documents
      one after another, "none" gives each example a row.
    split_seed: of the split of the documents, and of packing.
    cache: folder for tokens; "" for $KDJAX_CACHE or, where that is not set, ~/.cache/kdjax.

  Raises:
    KdjaxError: arguments out of range, sources that are missing, damaged or empty.
  """
  fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
  lengths = {"sequence_length": sequence_length, "teacher_sequence_length": teacher_sequence_length}
  _check(lengths, fractions, max_documents, max_tokens, pack, split_seed)
  specs = sources or PYTHON_LIBRARY
  domains = tuple(specs)
  shares = checked_weights(weights, domains) if weights else None
  documents = {domain: _documents(spec, f"sources.{domain}") for domain, spec in specs.items()}
  with within("tokenizer"):
    loaded = load_tokenizer(tokenizer)
  sha256 = fingerprint(loaded)
  teacher = None
  if teacher_tokenizer:
    with within("teacher_tokenizer"):
      theirs = load_tokenizer(teacher_tokenizer)
    teacher = Vocabulary(vocab_size(theirs), theirs, "text in the teacher's tokens")
    _check_paired(documents, pack)
  texts, pairs = [], []
  for domain, each in documents.items():
    with within(f"sources.{domain}"):
      limits = {"max_documents": max_documents, "max_tokens": max_tokens}
      own = {"cache": cache, "ends": teacher is not None}
      texts.append(tokenize(each, loaded, fingerprint=sha256, **own, **limits))
      if teacher is not None:
        limits = {"max_documents": texts[-1].manifest["documents"]}
        pairs.append(paired(texts[-1], tokenize(each, teacher.tokenizer, **own, **limits)))
  parts: dict[str, list[Chosen]] = {"train": [], "test": [], "validation": []}
  distinct = distinct_documents(dict(zip(domains, texts, strict=True)))
  for own, kept, (domain, each) in zip(texts, distinct, documents.items(), strict=True):
    limit = sequence_length + 1 if each.chat else None
    chosen = learnable_documents(own, kept, limit, domain)
    if not len(chosen.start):
      raise KdjaxError(
        f"sources.{domain}: no example of at most {sequence_length} tokens has anything to learn"
        " (in chats, every answer begins later, or there is none; or another domain has the same"
        " documents); raise sequence_length, or correct the documents"
      )
    rest, tested = split(chosen, test_fraction, split_seed)
    held = rest.where(np.zeros(len(rest.start), bool))
    if validation_fraction:
      rest, held = split(rest, validation_fraction, split_seed, nth=1)
    for name, part in (("train", rest), ("test", tested), ("validation", held)):
      parts[name].append(part)
  weighted = any(_has_weights(each) for each in texts)
  rows = {}
  for name, chosen in parts.items():
    if name == "validation" and not validation_fraction:
      continue
    if not any(len(part.start) for part in chosen):
      raise KdjaxError(
        f"{name}_fraction = {fractions[f'{name}_fraction']} leaves no document to"
        f" {'test on' if name == 'test' else 'validate on'}; use more documents"
      )
    fields = {
      "domains": domains,
      "sequence_length": sequence_length,
      "weighted": weighted,
      "tokenizer_sha256": sha256,
    }
    if teacher is None:
      plan = _plan(texts, chosen, sequence_length, pack, split_seed)
      rows[name] = PackedRows(texts=tuple(texts), plan=plan, **fields)
      continue
    own = {
      "sequence_length": teacher_sequence_length or sequence_length,
      "tokenizer_sha256": fingerprint(teacher.tokenizer),
    }
    rows[name] = pair_rows(
      pairs, chosen, pack, split_seed, student=fields, teacher=fields | own | {"weighted": False}
    )
    if not len(rows[name]):
      raise KdjaxError(
        f"no example of {name} documents fits {sequence_length} tokens of tokenizer and"
        f" {own['sequence_length']} of teacher_tokenizer; raise both"
      )
  if warped:
    rows = {name: _warped(each, loaded, teacher) for name, each in rows.items()}
  if shares is not None:
    rows["train"] = _mixed(rows["train"], shares)
  return TextData(
    rows["train"],
    rows["test"],
    rows.get("validation"),
    vocab_size(loaded),
    sequence_length,
    loaded,
    domains,
    "text",
    teacher,
  )


def _documents(spec: Any, where: str) -> Documents:
  kind = spec.get("kind") if isinstance(spec, Mapping) else None
  if kind not in KINDS:
    raise KdjaxError(f"{where}.kind = {kind!r} does not exist{hint(str(kind), KINDS)}")
  read, fields = KINDS[kind]
  given = {name: value for name, value in spec.items() if name != "kind" and value != ""}
  for name, value in given.items():
    if name not in fields:
      raise KdjaxError(f"{where}.{name} is not a field of kind {kind!r}{hint(name, fields)}")
    check_type(value, str, f"{where}.{name}")
  if "path" in fields and "path" not in given:
    raise KdjaxError(f"{where}.path is missing; a source of kind {kind!r} needs it")
  with within(where):
    return read(**given)


def _check_paired(documents: Mapping[str, Documents], pack: str) -> None:
  for domain, each in documents.items():
    if each.chat:
      raise KdjaxError(
        f"sources.{domain}: chats cannot be read with teacher_tokenizer, since each tokenizer"
        " writes them out in its own way; write them out as text with spans"
      )
  if pack == "concat":
    raise KdjaxError(
      "pack = 'concat' does not go with teacher_tokenizer, whose rows are full elsewhere; use"
      " 'pack'"
    )


def _warped(
  rows: PackedRows | PairedRows, tokenizer: PreTrainedTokenizerFast, teacher: Vocabulary | None
) -> PairedRows:
  if teacher is None:
    raise KdjaxError("warped = True aligns two tokenizers; give teacher_tokenizer")
  pieces = tuple(
    tuple(spelled(token or "") for token in each.convert_ids_to_tokens(range(vocab_size(each))))
    for each in (tokenizer, teacher.tokenizer)
  )
  return dataclasses.replace(rows, pieces=pieces)


def _mixed(rows: PackedRows | PairedRows, shares: tuple[float, ...]) -> PackedRows | PairedRows:
  if isinstance(rows, PairedRows):
    return dataclasses.replace(rows, student=_mixed(rows.student, shares))
  counts = np.bincount(rows.plan.domain, minlength=len(rows.domains)).tolist()
  return dataclasses.replace(rows, mixture=Mixture(rows.domains, tuple(counts), shares))


def _plan(
  texts: list[Tokenized],
  chosen: list[Chosen],
  sequence_length: int,
  pack: str,
  seed: int,
) -> Plan:
  if pack == "concat":
    return plan_concatenated([(each.start, each.length) for each in chosen], sequence_length, seed)
  parts = []
  for domain, (own, each) in enumerate(zip(texts, chosen, strict=True)):
    examples = cut(each.start, each.length, domain, sequence_length)
    kept = learnable(examples, own.weights)
    parts.append(Examples(*(array[kept] for array in examples)))
  return plan_packed(parts, sequence_length, seed) if pack == "pack" else plan_single(parts)


def _has_weights(text: Tokenized) -> bool:
  return text.weights is not None and bool(((text.weights != 0) & (text.weights != 1)).any())


def _check(
  lengths: Mapping[str, int | None],
  fractions: Mapping[str, float],
  max_documents: int | None,
  max_tokens: int | None,
  pack: str,
  split_seed: int,
) -> None:
  counts = {**lengths, "max_documents": max_documents, "max_tokens": max_tokens}
  for name, value in counts.items():
    if value is not None and value < 1:
      raise KdjaxError(f"{name} = {value} must be at least 1")
  for name, value in fractions.items():
    if not (0 < value < 1 or (value == 0 and name == "validation_fraction")):
      interval = "[0, 1)" if name == "validation_fraction" else "(0, 1)"
      raise KdjaxError(f"{name} = {value} must lie in {interval}")
  if pack not in PACKS:
    raise KdjaxError(f"pack = {pack!r} does not exist; what exists: {', '.join(PACKS)}")
  if split_seed < 0:
    raise KdjaxError(f"split_seed = {split_seed} must be at least 0")
