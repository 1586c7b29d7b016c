"""Pairs of a source and a target: rows for encoder-decoders, and for decoders that read both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax.data.base import UNLABELLED, Example
from kdjax.data.text.documents import records, text_of
from kdjax.data.text.python_library import library_functions
from kdjax.data.tokenizers import load_tokenizer, vocab_size
from kdjax.errors import KdjaxError, within

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PairRows:
  """A `Source` of pairs, one a row.

  A row is a dict: `tokens` int32 [S], the source and what ends it; `segment_ids` int32 [S], 1 for
  tokens and 0 for the padding behind them; `label` int32 [D], the target and what ends it, -1 for
  padding; `mask` bool [D], label >= 0; `decoder_tokens` int32 [D], the start token and the target
  but its last token; `decoder_segment_ids` int32 [D]; `domain` (0) and `index` int32.

  With `joined` it is a row for decoders: the source padded on its left and the target behind it,
  `tokens`, `segment_ids` and `positions` (from 0 at the first token) int32 [S + D], and `label` and
  `mask` [S + D], at the place before each of the target's tokens.

  Attributes:
    sources: int32 [N, S], padded with zeros.
    targets: int32 [N, D], padded with zeros.
    source_lengths: int32 [N], at least 1.
    target_lengths: int32 [N], at least 1.
    start: the token before a target's first one.
    joined: whether rows are for decoders.
  """

  sources: np.ndarray
  targets: np.ndarray
  source_lengths: np.ndarray
  target_lengths: np.ndarray
  start: int
  joined: bool = False

  @property
  def labels(self) -> np.ndarray:
    raise KdjaxError("pairs of texts have no class to split or hide by")

  def __len__(self) -> int:
    return len(self.sources)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    positions = np.asarray(positions, np.int64)
    sources, targets = self.sources[positions], self.targets[positions]
    size = sources.shape[1]
    heard = np.arange(size) < self.source_lengths[positions][:, None]
    learnt = np.arange(targets.shape[1]) < self.target_lengths[positions][:, None]
    label = np.where(learnt, targets, np.int32(UNLABELLED))
    same = {
      "domain": np.zeros(len(positions), np.int32),
      "index": positions.astype(np.int32),
    }
    if not self.joined:
      begin = np.full_like(targets[:, :1], self.start)
      return same | {
        "tokens": sources,
        "segment_ids": heard.astype(np.int32),
        "label": label,
        "mask": learnt,
        "decoder_tokens": np.concatenate([begin, targets[:, :-1]], 1) * learnt,
        "decoder_segment_ids": learnt.astype(np.int32),
      }
    left = np.zeros_like(sources)
    for row, own, length in zip(left, sources, self.source_lengths[positions], strict=True):
      row[size - length :] = own[:length]
    where = np.concatenate([heard[:, ::-1], learnt], 1)
    nothing = np.full_like(sources[:, 1:], UNLABELLED)
    label = np.concatenate([nothing, label, np.full_like(label[:, :1], UNLABELLED)], 1)
    return same | {
      "tokens": np.concatenate([left, targets], 1),
      "segment_ids": where.astype(np.int32),
      "positions": np.maximum(np.cumsum(where, 1) - 1, 0).astype(np.int32) * where,
      "label": label,
      "mask": label >= 0,
    }


class TextPairs(NamedTuple):
  """A data set of pairs.

  Attributes:
    train: rows to learn from.
    test: rows to evaluate on.
    validation: rows that are held out; None without.
    num_classes: size of the vocabulary.
    sequence_length: places of a source, S.
    tokenizer: of both sides.
    start: the token before a target's first one.
    answer_token: in a target, the answer is what follows the last of these; None where targets are
      not graded.
    domains: names, one.
    name: for messages and reports.
    teacher: None: a teacher reads the same tokens.
  """

  train: PairRows
  test: PairRows
  validation: PairRows | None
  num_classes: int
  sequence_length: int
  tokenizer: PreTrainedTokenizerFast
  start: int
  answer_token: int | None = None
  domains: tuple[str, ...] = ("pairs",)
  name: str = "text_pairs"
  teacher: None = None

  def source_ids(self, texts: Sequence[str]) -> list[list[int]]:
    """Sources as rows hold them: tokens, what ends them, and no more than there are places for."""
    return _ids(self.tokenizer, texts, self.sequence_length)


def text_pairs(
  *,
  tokenizer: str,
  source_length: int,
  target_length: int,
  path: str = "",
  test_path: str = "",
  source: str = "source",
  target: str = "target",
  start: int | None = None,
  answer_marker: str = "",
  joined: bool = False,
  max_pairs: int | None = None,
  test_fraction: float = 0.05,
  validation_fraction: float = 0.0,
  split_seed: int = 0,
) -> TextPairs:
  """Pairs from a JSONL file, or functions of Python's own library and what each is said to do.

  Source and target are cut off to their lengths; the tokenizer's end token, where it has one,
  stands behind each that is not. In the library, the source is a function's code without its
  docstring and the target the docstring's first line; of equal targets the first is kept.

  Args:
    tokenizer: a path or `package:NAME`; see `kdjax.data.tokenizers.load_tokenizer`.
    source_length: S, places of a source.
    target_length: D, places of a target.
    path: of a JSONL file, or a folder of them, of objects with both texts; "" for the library.
    test_path: of the pairs for testing; "" for a share of the others.
    source: field of the source.
    target: field of the target.
    start: the token before a target's first one; None for the tokenizer's beginning of a text, or
      its end where it has none.
    answer_marker: one token, behind the last of which a target's answer stands. Evaluation then
      writes targets greedily and tells how many answers are right, `exact_match`.
    joined: rows for decoders, see `PairRows`: what a decoder-only teacher is trained on.
    max_pairs: the first ones in a random order; None for all.
    test_fraction: share of the pairs for testing, in (0, 1); unused with `test_path`.
    validation_fraction: share of the others that is held out, in [0, 1).
    split_seed: of that order, which decides the shares too.

  Raises:
    KdjaxError: arguments out of range, a file that is missing or damaged, too few pairs.
  """
  counts = {"source_length": source_length, "target_length": target_length, "max_pairs": max_pairs}
  for name, value in counts.items():
    if value is not None and value < 1:
      raise KdjaxError(f"{name} = {value} must be at least 1")
  if not 0 < test_fraction < 1:
    raise KdjaxError(f"test_fraction = {test_fraction} must lie in (0, 1)")
  if not 0 <= validation_fraction < 1:
    raise KdjaxError(f"validation_fraction = {validation_fraction} must lie in [0, 1)")
  with within("tokenizer"):
    loaded = load_tokenizer(tokenizer)
  first = loaded.eos_token_id if loaded.bos_token_id is None else loaded.bos_token_id
  start = first if start is None else start
  if start is None or not 0 <= start < vocab_size(loaded):
    raise KdjaxError(
      f"start = {start} must be a token below {vocab_size(loaded)}; the tokenizer names none"
    )
  pairs = _read(path, source, target) if path else list(library_functions())
  apart = _read(test_path, source, target, "test_path") if test_path else []
  order = np.random.default_rng(split_seed).permutation(len(pairs))[:max_pairs]
  if apart:  # as if they were the first of all
    pairs, order = [*apart, *pairs], [*range(len(apart)), *(order + len(apart))]
  tested = len(apart) or round(test_fraction * len(order))
  held = round(validation_fraction * (len(order) - tested))
  if not tested or tested + held >= len(order) or bool(validation_fraction) != bool(held):
    raise KdjaxError(
      f"test_fraction = {test_fraction} and validation_fraction = {validation_fraction} of"
      f" {len(order)} pairs leave a part empty; use more pairs"
    )
  columns = zip(*(pairs[i] for i in order), strict=True)
  sizes = (source_length, target_length)
  (sources, heard), (targets, said) = (
    _tokens(loaded, texts, size) for texts, size in zip(columns, sizes, strict=True)
  )

  def rows(begin: int, end: int | None) -> PairRows:
    return PairRows(*(array[begin:end] for array in (sources, targets, heard, said)), start, joined)

  return TextPairs(
    train=rows(tested + held, None),
    test=rows(0, tested),
    validation=rows(tested, tested + held) if held else None,
    num_classes=vocab_size(loaded),
    sequence_length=source_length,
    tokenizer=loaded,
    start=start,
    answer_token=_answer_token(loaded, answer_marker) if answer_marker else None,
  )


def _answer_token(tokenizer: PreTrainedTokenizerFast, marker: str) -> int:
  ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
  if len(ids) != 1:
    raise KdjaxError(
      f"answer_marker = {marker!r} is {len(ids)} tokens; use one that is a token of its own"
    )
  return ids[0]


def _read(path: str, source: str, target: str, field: str = "path") -> list[Pair]:
  with within(field):
    found = [
      (text_of(record, source, where), text_of(record, target, where))
      for where, record in records(path)
    ]
    if not found:
      raise KdjaxError(f"{path} holds no pair; give a file with at least one line")
  return found


def _tokens(
  tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], size: int
) -> tuple[np.ndarray, np.ndarray]:
  """([N, size], lengths)."""
  ids = _ids(tokenizer, texts, size)
  if empty := [i for i, own in enumerate(ids) if not own]:
    raise KdjaxError(f"pair {empty[0]} has an empty text, and the tokenizer no end token")
  out = np.zeros((len(ids), size), np.int32)
  for row, own in zip(out, ids, strict=True):
    row[: len(own)] = own
  return out, np.array([len(own) for own in ids], np.int32)


def _ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], size: int) -> list[list[int]]:
  """Each text with the end token behind it, cut off."""
  coded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
  end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
  return [[*own, *end][:size] for own in coded]
