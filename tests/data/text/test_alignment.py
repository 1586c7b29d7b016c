"""Alignment: groups of both tokenizations spell the same bytes, whatever the text."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kdjax.data.text.alignment import UNKNOWN, align, byte_ends
from tests.data.text.helpers import bytes_tokenizer, smollm2

# The bytes of byte-level BPE: those that print stand for themselves, the others lie from 256 on.
PRINTS = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTS]
BYTE_OF = {chr(b): b for b in PRINTS} | {chr(256 + n): b for n, b in enumerate(OTHERS)}
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}
TEXTS = st.text(st.sampled_from("ab é🙂漢\n  .1ﬁ"), min_size=1, max_size=24) | st.text(min_size=1)


@functools.cache
def merging():
  """Byte-level BPE with merges across characters and inside of them."""
  raw = [b"ab", b" a", b"a\xc3", b" \xc3", b"\xf0\x9f", b"\xa9b", b"\xc3\xa9"]
  merges = [tuple(CHAR_OF[byte] for byte in piece) for piece in raw]
  vocab = sorted(BYTE_OF) + ["".join(pair) for pair in merges]
  backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocab)}, merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return backend


@functools.cache
def byte_level(name):
  backends = {
    "bytes": lambda: bytes_tokenizer().backend_tokenizer,
    "merging": merging,
    "smollm2": lambda: smollm2().backend_tokenizer,
  }
  return backends[name]()


def spelled(backend, text):
  """(bytes of each token as they are spelled, its end as the alignment has it)."""
  coded = backend.encode(text, add_special_tokens=False)
  # What is no token of bytes is a special one, written in the text.
  pieces = [
    bytes(BYTE_OF[char] for char in piece) if set(piece) <= BYTE_OF.keys() else piece.encode()
    for piece in coded.tokens
  ]
  return pieces, byte_ends(text, np.array(coded.offsets), coded.tokens, True)


def of_one(ends):
  return ends, np.array([0, len(ends)])


def taken(groups, values):
  return [[v for v, own in zip(values, groups, strict=True) if own == g] for g in sorted({*groups})]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(TEXTS, st.permutations(["bytes", "merging", "smollm2"]))
def test_groups_spell_the_same_bytes_and_are_all_of_the_text(text, names):
  sides = [spelled(byte_level(name), text) for name in names[:2]]
  if any(b"".join(pieces) != text.encode() for pieces, _ in sides):
    return  # SmolLM2 has no token for some bytes, and drops them
  for pieces, ends in sides:
    np.testing.assert_array_equal(ends, np.cumsum([len(piece) for piece in pieces]))
  groups = align(*of_one(sides[0][1]), *of_one(sides[1][1]))
  told = [
    [b"".join(group) for group in taken(own.tolist(), pieces)]
    for own, (pieces, _) in zip(groups[:2], sides, strict=True)
  ]
  assert told[0] == told[1] and b"".join(told[0]) == text.encode()
  assert len(told[0]) == groups.count
  # As short as can be: no group has a place inside where a token of either side ends.
  ends = [taken(g.tolist(), s[1]) for g, s in zip(groups[:2], sides, strict=True)]
  for left, right in zip(*ends, strict=True):
    assert set(left) & set(right) == {left[-1]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=2, max_size=8))
def test_groups_part_several_documents_whatever_the_ends(every):
  every = [np.maximum.accumulate(ends) for ends in every[: len(every) // 2 * 2]]
  rng = np.random.default_rng(len(every))
  sides = []
  for own in (every[::2], every[1::2]):
    ends = np.concatenate(own)
    ends = np.where(rng.random(len(ends)) < 0.2, UNKNOWN, ends)
    sides += [ends, np.concatenate([[0], np.cumsum([len(each) for each in own])])]
  groups = align(*sides)
  for own, offsets in ((groups.student, sides[1]), (groups.teacher, sides[3])):
    assert own[0] == 0 and set(np.diff(own)) <= {0, 1} and own[-1] == groups.count - 1
    assert set(np.diff(own)[offsets[1:-1] - 1]) <= {1}  # none reaches over two documents
  starts = [own[offsets[:-1]] for own, offsets in zip(groups[:2], sides[1::2], strict=True)]
  np.testing.assert_array_equal(*starts)


def test_what_is_worked_by_hand():
  # "ab cd": a|b| |cd against ab| cd: the one has an end after 1 2 3 5 bytes, the other after 2 5.
  groups = align(*of_one(np.array([1, 2, 3, 5])), *of_one(np.array([2, 5])))
  assert groups.student.tolist() == [0, 0, 1, 1] and groups.teacher.tolist() == [0, 1]
  # Tokens that cover nothing: at the beginning of one side, and one end of each at the end.
  groups = align(*of_one(np.array([0, 2, 5, 6])), *of_one(np.array([2, 5, 6])))
  assert groups.student.tolist() == [0, 0, 1, 2] and groups.teacher.tolist() == [0, 1, 2]


def test_words_without_their_spaces_against_bytes():
  backend = Tokenizer(models.WordLevel({"<unk>": 0, "caf": 1, "é": 2}, "<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  text = " café  漢字.\n"
  coded = backend.encode(text)
  ends = byte_ends(text, np.array(coded.offsets), coded.tokens, False)
  assert ends.tolist() == [6, 14, len(text.encode())]  # spaces go with the word behind them
  pieces, theirs = spelled(byte_level("merging"), text)
  groups = align(*of_one(ends), *of_one(theirs))
  assert [b"".join(g) for g in taken(groups.teacher.tolist(), pieces)] == [
    " café".encode(), "  漢字".encode(), b".\n"
  ]  # fmt: skip


@pytest.mark.parametrize("fallback", [True, False])
def test_pieces_of_a_character(fallback):
  # Three tokens of one character: bytes in the one case, and who knows what in the other.
  pieces = ["a", "<0xE6>", "<0xBC>", "<0xA2>", "b"] if fallback else ["a", "x", "y", "z", "b"]
  offsets = np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]])
  ends = byte_ends("a漢b", offsets, pieces, False)
  assert ends.tolist() == ([1, 2, 3, 4, 5] if fallback else [1, UNKNOWN, UNKNOWN, 4, 5])


def test_a_normalised_text_keeps_the_ends_that_are_sure():
  # NFC writes one character of two bytes for two of three, so the pieces are not the text's bytes.
  backend = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(BYTE_OF))}, []))
  backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  text = "xe\u0301y"
  coded = backend.encode(text)
  ends = byte_ends(text, np.array(coded.offsets), coded.tokens, True)
  assert ends.tolist() == [1, UNKNOWN, 2, 5]  # the accent, which no token covers, goes with the y
