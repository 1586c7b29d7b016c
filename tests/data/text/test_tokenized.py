"""Tokens on the disk: what they are, when they are made anew, and who may race for them."""

import json
import os
import pickle

import numpy as np
import pytest

from kdjax.data.text.documents import jsonl
from kdjax.data.text.tokenized import tokenize
from kdjax.errors import KdjaxError
from tests.data.text.helpers import EOS, bytes_tokenizer, smollm2

TEXTS = ["def f(x):\n  return x", "", "naïve 🙂 日本", "  \n", "one"]


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


@pytest.fixture
def source(tmp_path):
  return write(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])


def documents(corpus, tokenizer):
  return [
    tokenizer.decode(corpus.tokens[first:stop])
    for first, stop in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
  ]


@pytest.mark.parametrize("make", [bytes_tokenizer, smollm2])
def test_documents_come_back_with_their_end(source, make):
  tokenizer = make()
  corpus = tokenize(jsonl(source), tokenizer)
  kept = [text for text in TEXTS if text.strip()]
  assert documents(corpus, tokenizer) == [text + tokenizer.eos_token for text in kept]
  assert corpus.weights is None and not (corpus.folder / "weights.bin").exists()
  assert (corpus.tokens.dtype, corpus.offsets.dtype) == (np.dtype("<i4"), np.dtype("<i8"))
  ids = [i for text in kept for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
  np.testing.assert_array_equal(np.fromfile(corpus.folder / "tokens.bin", "<i4"), ids)


def test_made_once_and_anew_when_anything_changed(source, cache):
  tokenizer = bytes_tokenizer()
  first = tokenize(jsonl(source), tokenizer)
  made = os.stat(first.folder / "tokens.bin").st_mtime_ns
  again = tokenize(jsonl(source), tokenizer)
  assert again.folder == first.folder
  assert os.stat(first.folder / "tokens.bin").st_mtime_ns == made
  assert first.folder.is_relative_to(cache)
  other = bytes_tokenizer()
  other.add_tokens(["return"])
  assert tokenize(jsonl(source), other).folder != first.folder
  assert tokenize(jsonl(source), tokenizer, max_documents=1).folder != first.folder
  write(source, [{"text": "changed"}])
  changed = tokenize(jsonl(source), tokenizer)
  assert documents(changed, tokenizer) == ["changed" + EOS]


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "manifest.json"])
def test_what_is_cut_off_is_made_anew(source, name):
  tokenizer = bytes_tokenizer()
  corpus = tokenize(jsonl(source), tokenizer)
  wanted = documents(corpus, tokenizer)
  path = corpus.folder / name
  path.write_bytes(path.read_bytes()[:-3])
  assert documents(tokenize(jsonl(source), tokenizer), tokenizer) == wanted
  assert [child.name for child in corpus.folder.parent.iterdir()] == [corpus.folder.name]


def test_limits(source):
  tokenizer = bytes_tokenizer()
  corpus = tokenize(jsonl(source), tokenizer, max_documents=2)
  assert documents(corpus, tokenizer) == [TEXTS[0] + EOS, TEXTS[2] + EOS]
  corpus = tokenize(jsonl(source), tokenizer, max_tokens=5)
  assert documents(corpus, tokenizer) == [TEXTS[0] + EOS]


def test_spans_weigh_their_tokens(tmp_path):
  spans = [{"text": "ab ", "weight": 0.5}, {"text": "é", "weight": 0}, {"text": "c", "weight": 3}]
  path = write(tmp_path / "a.jsonl", [{"text": "plain"}, {"spans": spans}])
  corpus = tokenize(jsonl(path), bytes_tokenizer())
  own = corpus.weights[corpus.offsets[1] :]
  # Two bytes of é; the end goes with the last span.
  np.testing.assert_array_equal(own, np.float32([0.5, 0.5, 0.5, 0, 0, 3, 3]))
  np.testing.assert_array_equal(corpus.weights[: corpus.offsets[1]], np.ones(6, np.float32))


def test_copies_read_the_files_themselves(source):
  corpus = tokenize(jsonl(source), bytes_tokenizer())
  corpus.tokens  # noqa: B018 (mapped)
  data = pickle.dumps(corpus)
  assert len(data) < 4096
  np.testing.assert_array_equal(pickle.loads(data).tokens, corpus.tokens)


def test_nothing_to_read_and_half_a_character(tmp_path, cache):
  with pytest.raises(KdjaxError, match=r"no documents with text \(2 are empty\)"):
    tokenize(jsonl(write(tmp_path / "a", [{"text": ""}, {"text": " \n"}])), bytes_tokenizer())
  with pytest.raises(KdjaxError, match="line 1 has half of a surrogate pair"):
    tokenize(jsonl(write(tmp_path / "b", [{"text": "a\ud800"}])), bytes_tokenizer())
  (tmp_path / "c").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
  with pytest.raises(KdjaxError, match=r"c, line 2 is not UTF-8 \(byte 13 is 0xe9\); convert it"):
    tokenize(jsonl(tmp_path / "c"), bytes_tokenizer())
  assert not list(cache.rglob("*.bin"))  # nothing half-written stays


def test_another_process_may_be_faster(source, monkeypatch):
  tokenizer, rename, renamed = bytes_tokenizer(), os.rename, []

  def slow(scratch, folder):
    renamed.append(scratch)
    if len(renamed) == 1:  # the other one begins and ends before this one has its name
      tokenize(jsonl(source), tokenizer)
    rename(scratch, folder)

  monkeypatch.setattr(os, "rename", slow)
  corpus = tokenize(jsonl(source), tokenizer)
  assert len(renamed) == 2
  assert documents(corpus, tokenizer)[0] == TEXTS[0] + EOS
  assert list(corpus.folder.parent.iterdir()) == [corpus.folder]
