"""Text for language models: documents of several domains as packed rows to train on and to test."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.text.documents import Documents, chat, jsonl, parquet, text_folder
from kdjax.data.text.examples import Examples, cut, learnable
from kdjax.data.text.mixture import Mixture, checked_weights
from kdjax.data.text.packing import PackedRows
from kdjax.data.text.plan import Plan, plan_concatenated, plan_packed, plan_single
from kdjax.data.text.python_library import python_library
from kdjax.data.text.tokenized import Tokenized, tokenize
from kdjax.data.tokenizers import fingerprint, load_tokenizer, vocab_size
from kdjax.errors import KdjaxError, within
from kdjax.resolve import check_type, hint

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

LOG = logging.getLogger("kdjax")
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


class TextData(NamedTuple):
  """A data set for language models.

  Attributes:
    train: rows to learn from.
    test: rows of other documents, to evaluate on.
    num_classes: size of the vocabulary; labels are token ids below it.
    sequence_length: positions of a row, T.
    tokenizer: what the tokens are of.
    domains: names; `domain` of a row is an index of them.
    name: for messages and reports.
  """

  train: PackedRows
  test: PackedRows
  num_classes: int
  sequence_length: int
  tokenizer: PreTrainedTokenizerFast
  domains: tuple[str, ...]
  name: str


def text(
  *,
  tokenizer: str,
  sequence_length: int,
  sources: Mapping[str, Mapping] | None = None,
  weights: Mapping[str, float] | None = None,
  test_fraction: float = 0.05,
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
    sources: domain to source, a mapping with `kind` and the fields of that kind: "folder" (path,
      glob), "jsonl" (path, field; a record may have `spans`, a list of {text, weight}, instead),
      "parquet" (path, field), "chat" (path, field; only the assistant's answers are learnt, and
      what is longer than a row is cut off), "python" (field: "code", "docs" or "all"). None for
      Python's library, in the domains "code" and "docs". Exact duplicates within a domain are left
      out.
    weights: domain to its share of the training rows, any scale; None reads all rows equally often.
    test_fraction: share of each domain's documents that are for testing, in (0, 1).
    max_documents: of each domain, the first ones.
    max_tokens: of each domain; no document is begun after so many.
    pack: "pack" puts whole examples together into rows, "concat" cuts rows out of all documents
      one after another, "none" gives each example a row.
    split_seed: of the split into training and testing, and of packing.
    cache: folder for tokens; "" for $KDJAX_CACHE or, where that is not set, ~/.cache/kdjax.

  Raises:
    KdjaxError: arguments out of range, sources that are missing, damaged or empty.
  """
  _check(sequence_length, test_fraction, max_documents, max_tokens, pack, split_seed)
  specs = sources or PYTHON_LIBRARY
  domains = tuple(specs)
  shares = checked_weights(weights, domains) if weights else None
  documents = {domain: _documents(spec, f"sources.{domain}") for domain, spec in specs.items()}
  with within("tokenizer"):
    loaded = load_tokenizer(tokenizer)
  sha256 = fingerprint(loaded)
  texts = []
  for domain, each in documents.items():
    with within(f"sources.{domain}"):
      limits = {"max_documents": max_documents, "max_tokens": max_tokens}
      texts.append(tokenize(each, loaded, cache=cache, fingerprint=sha256, **limits))
  halves: tuple[list, list] = ([], [])
  for text, (domain, each) in zip(texts, documents.items(), strict=True):
    limit = sequence_length + 1 if each.chat else None
    for half, own in zip(halves, _split(text, test_fraction, split_seed, domain), strict=True):
      half.append(_learnable(text, own, limit, domain))
    if not len(halves[0][-1][0]):
      raise KdjaxError(
        f"sources.{domain}: no example of at most {sequence_length} tokens has anything to learn"
        " (in chats, every answer begins later, or there is none); raise sequence_length, or"
        " correct the documents"
      )
  if not any(len(starts) for starts, _ in halves[1]):
    raise KdjaxError(
      f"test_fraction = {test_fraction} leaves no document to test on; use more documents"
    )
  plans = [_plan(texts, half, sequence_length, pack, split_seed) for half in halves]
  weighted = any(_has_weights(each) for each in texts)
  train, test = (
    PackedRows(domains, tuple(texts), plan, sequence_length, weighted, sha256) for plan in plans
  )
  if shares is not None:
    train = _mixed(train, shares)
  return TextData(train, test, vocab_size(loaded), sequence_length, loaded, domains, "text")


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


def _mixed(rows: PackedRows, shares: tuple[float, ...]) -> PackedRows:
  counts = np.bincount(rows.plan.domain, minlength=len(rows.domains)).tolist()
  return dataclasses.replace(rows, mixture=Mixture(rows.domains, tuple(counts), shares))


def _split(
  text: Tokenized, fraction: float, seed: int, domain: str
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of the documents for training and of those for testing, without duplicates."""
  keys = np.array(text.keys).view("<u8").reshape(-1, 2)
  distinct = np.sort(np.unique(keys, axis=0, return_index=True)[1])
  if duplicates := len(keys) - len(distinct):
    LOG.info("%s: %d duplicates of other documents are left out", domain, duplicates)
  testing = _testing(keys[distinct, 0], fraction, seed)
  return distinct[~testing], distinct[testing]


def _testing(keys: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """bool [N]: which documents are for testing, by content and seed alone.

  So a document stays on its side when others come or go, and is on the same one in every domain.
  Only where one side of a domain would be empty does one document change sides.
  """
  drawn = _scrambled(keys ^ _scrambled(np.array([seed], np.uint64)))
  testing = drawn < np.uint64(fraction * 2.0**64)
  if len(keys) > 1 and not testing.any():
    testing[np.argmin(drawn)] = True
  if testing.all():
    testing[np.argmax(drawn)] = False
  return testing


def _scrambled(values: np.ndarray) -> np.ndarray:
  """The last step of SplitMix64: every bit of the input changes half of the output's."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def _learnable(
  text: Tokenized, own: np.ndarray, limit: int | None, domain: str
) -> tuple[np.ndarray, np.ndarray]:
  """Start and length of the chosen documents that have something to learn."""
  offsets = np.array(text.offsets)
  starts, lengths = offsets[own], offsets[own + 1] - offsets[own]
  if limit is not None:
    lengths = np.minimum(lengths, limit)
  whole = Examples(starts, lengths - 1, np.zeros(len(starts), np.int32))
  kept = learnable(whole, text.weights)
  if dropped := int((~kept).sum()):
    LOG.info("%s: %d documents hold nothing to learn and are left out", domain, dropped)
  return starts[kept], lengths[kept]


def _plan(
  texts: list[Tokenized],
  documents: list[tuple[np.ndarray, np.ndarray]],
  sequence_length: int,
  pack: str,
  seed: int,
) -> Plan:
  if pack == "concat":
    return plan_concatenated(documents, sequence_length, seed)
  parts = []
  for domain, (text, own) in enumerate(zip(texts, documents, strict=True)):
    examples = cut(*own, domain, sequence_length)
    kept = learnable(examples, text.weights)
    parts.append(Examples(*(array[kept] for array in examples)))
  return plan_packed(parts, sequence_length, seed) if pack == "pack" else plan_single(parts)


def _has_weights(text: Tokenized) -> bool:
  return text.weights is not None and bool(((text.weights != 0) & (text.weights != 1)).any())


def _check(
  sequence_length: int,
  test_fraction: float,
  max_documents: int | None,
  max_tokens: int | None,
  pack: str,
  split_seed: int,
) -> None:
  counts = {
    "sequence_length": sequence_length,
    "max_documents": max_documents,
    "max_tokens": max_tokens,
  }
  for name, value in counts.items():
    if value is not None and value < 1:
      raise KdjaxError(f"{name} = {value} must be at least 1")
  if not 0 < test_fraction < 1:
    raise KdjaxError(f"test_fraction = {test_fraction} must lie in (0, 1)")
  if pack not in PACKS:
    raise KdjaxError(f"pack = {pack!r} does not exist; what exists: {', '.join(PACKS)}")
  if split_seed < 0:
    raise KdjaxError(f"split_seed = {split_seed} must be at least 0")
