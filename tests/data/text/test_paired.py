"""Rows in two tokenizations hold the same documents, and equal groups spell equal bytes."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from kdjax.data import evaluation_batches, text, training_stream
from kdjax.errors import KdjaxError
from tests.data.text.helpers import bytes_tokenizer, words_tokenizer
from tests.data.text.test_alignment import BYTE_OF, merging

T, T_TEACHER = 24, 20
WORDS = ["a", "ab", "b ", " é", "🙂", "漢", "ab é", "\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("paired")
  bytes_tokenizer().save_pretrained(folder / "bytes")
  teacher = PreTrainedTokenizerFast(tokenizer_object=merging(), eos_token="</s>")
  teacher.save_pretrained(folder / "merging")
  rng = np.random.default_rng(0)
  for domain, count in (("first", 30), ("second", 12)):
    texts = ["".join(rng.choice(WORDS, rng.integers(1, 30))) + str(i) for i in range(count)]
    lines = "\n".join(json.dumps({"text": each}) for each in texts)
    (folder / f"{domain}.jsonl").write_text(lines)
  return folder


@pytest.fixture
def make(folder):
  def made(**options):
    given = {
      "tokenizer": str(folder / "bytes"),
      "teacher_tokenizer": str(folder / "merging"),
      "sequence_length": T,
      "teacher_sequence_length": T_TEACHER,
      "sources": {
        name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl")}
        for name in ("first", "second")
      },
      "test_fraction": 0.2,
    }
    return text(**given | options)

  return made


def spelled(tokenizer, ids):
  out = b""
  for piece in tokenizer.convert_ids_to_tokens(ids):
    out += b"" if piece in tokenizer.all_special_tokens else bytes(BYTE_OF[c] for c in piece)
  return out


@pytest.mark.parametrize("pack", ["pack", "none"])
def test_rows_of_both_sides_hold_the_same(make, pack):
  data = make(pack=pack)
  sides = (("", data.tokenizer, T), ("teacher_", data.teacher.tokenizer, T_TEACHER))
  assert (data.num_classes, data.teacher.num_classes) == (259, 264)
  for rows in (data.train, data.test):
    batch = rows.read(np.arange(len(rows)))
    assert batch["group_ids"].shape[1] == T and batch["teacher_group_ids"].shape[1] == T_TEACHER
    for row in range(len(rows)):
      own = {prefix: {k: batch[prefix + k][row] for k in ROW} for prefix, _, _ in sides}
      count = own[""]["segment_ids"].max()
      assert own["teacher_"]["segment_ids"].max() == count
      for segment in range(1, count + 1):  # the same labels, but for a group that begins a document
        told = [
          spelled(tok, own[p]["label"][(own[p]["segment_ids"] == segment)]) for p, tok, _ in sides
        ]
        assert told[0].endswith(told[1]) or told[1].endswith(told[0])
      ids = [set(own[p]["group_ids"].tolist()) - {-1} for p, _, _ in sides]
      assert ids[0] == ids[1]
      for group in ids[0]:
        places = [own[p]["group_ids"] == group for p, _, _ in sides]
        told = [
          spelled(tok, own[p]["label"][at]) for (p, tok, _), at in zip(sides, places, strict=True)
        ]
        assert told[0] == told[1]
        assert all((np.diff(np.flatnonzero(at)) == 1).all() for at in places)
        segments = [own[p]["segment_ids"][at] for (p, _, _), at in zip(sides, places, strict=True)]
        assert len({*segments[0], *segments[1]}) == 1
      for prefix, _, _ in sides:
        assert (own[prefix]["group_ids"][own[prefix]["segment_ids"] == 0] == -1).all()
    # Nearly all is compared: one group a document is not.
    assert (batch["group_ids"] >= 0).sum() > 0.8 * batch["mask"].sum()
    one = rows[0]
    for key, values in batch.items():
      np.testing.assert_array_equal(one[key], values[0])


ROW = ("tokens", "label", "mask", "segment_ids", "positions", "group_ids")


def test_every_label_is_there_once_on_both_sides(make, folder):
  data = make()
  wanted = {"": 0, "teacher_": 0}
  for name in ("first", "second"):
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
      for prefix, tok in (("", data.tokenizer), ("teacher_", data.teacher.tokenizer)):
        # All tokens and the end, less the first.
        wanted[prefix] += len(tok(json.loads(line)["text"], add_special_tokens=False)["input_ids"])
  got = dict.fromkeys(wanted, 0)
  for rows in (data.train, data.test):
    batch = rows.read(np.arange(len(rows)))
    for prefix in got:
      got[prefix] += int(batch[prefix + "mask"].sum())
  assert got == wanted


def test_the_ends_of_documents_are_compared(make):
  data = make()
  batch = data.train.read(np.arange(len(data.train)))
  ends = batch["label"] == data.tokenizer.eos_token_id
  theirs = batch["teacher_label"] == data.teacher.tokenizer.eos_token_id
  assert ends.sum() == theirs.sum() > 10
  np.testing.assert_array_equal(
    np.sort(batch["group_ids"][ends]), np.sort(batch["teacher_group_ids"][theirs])
  )
  assert (batch["group_ids"][ends] >= 0).all()


def test_streams_mix_and_blank_paired_rows(make):
  data = make(weights={"first": 0, "second": 1}, validation_fraction=0.3)
  stream = training_stream(data.train, batch_size=4, seed=0, threads=0)
  assert next(stream)["domain"].all()
  stream.set_weights({"first": 1, "second": 0})
  assert not next(stream)["domain"].any()
  assert len(data.validation)
  *_, last = evaluation_batches(data.test, batch_size=len(data.test) + 1, threads=0)
  assert not last["teacher_mask"][-1].any() and not last["teacher_segment_ids"][-1].any()


def test_a_group_longer_than_a_row_is_left_out(folder, make, caplog):
  # Against bytes, this word is one group.
  words_tokenizer(("on", "the", "information", "of")).save_pretrained(folder / "words")
  path = folder / "long.jsonl"
  texts = [f"on the {'information ' * 3}of {i}" for i in range(8)]
  path.write_text("\n".join(json.dumps({"text": each}) for each in texts))
  source = {"long": {"kind": "jsonl", "path": str(path)}}
  with caplog.at_level("INFO", logger="kdjax"):
    data = make(
      sources=source, sequence_length=8, teacher_tokenizer=str(folder / "words"), pack="none"
    )
  assert "groups of tokens are longer than a row" in caplog.text
  batch = data.train.read(np.arange(len(data.train)))
  decoded = "".join(data.tokenizer.batch_decode(batch["label"][batch["mask"]]))
  assert "information" not in decoded and " of" in decoded


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"teacher_tokenizer": "/none"}, "teacher_tokenizer: /none does not exist"),
    ({"teacher_sequence_length": 0}, "teacher_sequence_length = 0 must be at least 1"),
    ({"pack": "concat"}, "pack = 'concat' does not go with teacher_tokenizer"),
  ],
)
def test_mistakes_are_told(make, options, message):
  with pytest.raises(KdjaxError, match=message):
    make(**options)


def test_chats_are_refused(make, folder):
  path = folder / "chat.jsonl"
  path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
  with pytest.raises(KdjaxError, match=r"sources\.chat: chats cannot be read with teacher_token"):
    make(sources={"chat": {"kind": "chat", "path": str(path)}})
