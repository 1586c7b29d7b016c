"""Pairs of texts: what a row holds, in both forms, and which pairs are whose."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import text_pairs
from kdjax.data.text.python_library import library_functions
from kdjax.errors import KdjaxError
from kdjax.teachers.after_source import joined
from tests.data.text.helpers import bytes_tokenizer

BPE = str(Path(__file__).parents[3] / "third_party" / "models" / "smollm2_1024")
SOURCES = ["ab", "abcdef", "xyz", "q", "hello", "last"]
TARGETS = ["z", "yy", "", "wwwwww", "v", "u"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  bytes_tokenizer().save_pretrained(folder / "tokenizer")
  rows = [{"source": a, "target": b} for a, b in zip(SOURCES, TARGETS, strict=True)]
  (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return {"path": str(folder / "pairs.jsonl"), "tokenizer": str(folder / "tokenizer")}


def pairs(files, **options):
  options = {"source_length": 5, "target_length": 4, "test_fraction": 0.3} | options
  return text_pairs(**files, **options)


def test_a_row_holds_source_and_target_with_their_ends(files):
  data = pairs(files)
  end = data.tokenizer.eos_token_id
  assert data.start == (end if data.tokenizer.bos_token_id is None else data.tokenizer.bos_token_id)
  assert (len(data.train), len(data.test)) == (4, 2) and data.validation is None
  every = [row for part in (data.train, data.test) for row in part]
  seen = {}
  for row in every:
    source, target = row["tokens"][row["segment_ids"] > 0], row["label"][row["mask"]]
    text = data.tokenizer.decode(source, skip_special_tokens=True)
    assert text not in SOURCES or data.source_ids([text]) == [source.tolist()]
    seen[data.tokenizer.decode(source, skip_special_tokens=True)] = data.tokenizer.decode(
      target, skip_special_tokens=True
    )
    if len(source) < 5:
      assert source[-1] == end and (row["tokens"][len(source) :] == 0).all()
    wanted = [data.start, *target[:-1]]
    np.testing.assert_array_equal(row["decoder_tokens"][row["decoder_segment_ids"] > 0], wanted)
    np.testing.assert_array_equal(row["label"] >= 0, row["mask"])
  cut = {a[:5]: b[:4] for a, b in zip(SOURCES, TARGETS, strict=True)}
  assert seen == cut


def test_joined_rows_are_what_the_teacher_makes_of_plain_ones(files):
  plain, together = pairs(files).train, pairs(files, joined=True).train
  rows, whole = (part.read(np.arange(4)) for part in (plain, together))
  made = joined(rows)
  assert whole["tokens"].shape == whole["label"].shape == (4, 9)
  where = np.asarray(made["segment_ids"])
  for name, value in made.items():  # which leave out the last token, that nothing is read after
    np.testing.assert_array_equal(np.asarray(value) * where, whole[name][:, :-1] * where)
  np.testing.assert_array_equal(whole["label"][:, 4:8], rows["label"])
  assert (whole["label"][:, :4] == -1).all() and (whole["label"][:, 8] == -1).all()
  shifted = np.where(whole["mask"][:, :-1], whole["tokens"][:, 1:], -1)
  np.testing.assert_array_equal(whole["label"][:, :-1], shifted)


def test_parts_share_no_pair_and_stay_the_same(files):
  data, again = (pairs(files, validation_fraction=0.25) for _ in range(2))
  parts = [part.sources.tolist() for part in (data.train, data.test, data.validation)]
  assert [len(part) for part in parts] == [3, 2, 1]
  assert len({tuple(row) for part in parts for row in part}) == 6
  np.testing.assert_array_equal(data.train.targets, again.train.targets)
  assert len(pairs(files, max_pairs=4).train) == 3


def test_a_test_file_is_the_whole_test_split_and_nothing_of_it_is_learnt(files, tmp_path):
  rows = [{"source": "new", "target": "n"}, {"source": "old", "target": "o"}]
  (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
  given = {"test_path": str(tmp_path / "test.jsonl"), "answer_marker": "#"}
  data = pairs(files, **given, validation_fraction=0.25)
  heard = data.tokenizer.batch_decode(data.test.sources[:, :3])
  assert heard == ["new", "old"]
  assert (len(data.train), len(data.validation)) == (4, 2)
  assert data.tokenizer.decode([data.answer_token]) == "#" and pairs(files).answer_token is None


def test_the_library_says_what_its_functions_do():
  found = library_functions()
  assert len(found) > 1000 and len({line for _, line in found}) == len(found)
  assert all(code.startswith(("def ", "async def ", "@")) for code, _ in found)
  assert not any('"""' + line in code for code, line in found[:200])
  data = text_pairs(tokenizer=BPE, source_length=16, target_length=8, max_pairs=50)
  assert len(data.train) + len(data.test) == 50
  row = data.train[0]
  assert row["tokens"].shape == (16,) and row["label"].shape == (8,)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"source_length": 0}, "source_length = 0"),
    ({"test_fraction": 1.0}, "test_fraction = 1.0"),
    ({"validation_fraction": -0.1}, "validation_fraction = -0.1"),
    ({"test_fraction": 0.01}, "leave a part empty"),
    ({"start": 10_000}, "start = 10000"),
    ({"source": "question"}, "question"),
    ({"answer_marker": "=>"}, "'=>' is 2 tokens"),
    ({"test_path": "nowhere.jsonl"}, "test_path: nowhere.jsonl does not exist"),
  ],
)
def test_what_does_not_fit_is_told(files, change, told):
  with pytest.raises(KdjaxError, match=told):
    pairs(files, **change)
