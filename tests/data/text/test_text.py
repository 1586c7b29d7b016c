"""Text as rows: every token is learnt once, nothing crosses a document, rows can be taken apart."""

import collections
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import text
from kdjax.errors import KdjaxError
from tests.data.text.helpers import EOS, smollm2

T = 16
WORDS = ["a", "bc", "def", "ghij ", "\n", "é", "🙂", "0 1"]


def prose(rng, number):
  return f"{number}:" + "".join(rng.choice(WORDS, size=rng.integers(1, 40)))


@pytest.fixture
def sources(tmp_path):
  rng = np.random.default_rng(1)
  out = {}
  for domain, count in {"first": 60, "second": 25}.items():
    records = [{"text": prose(rng, number)} for number in range(count)]
    path = tmp_path / f"{domain}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out[domain] = {"kind": "jsonl", "path": str(path)}
  return out


@pytest.fixture
def make(sources, tokenizer_folder):
  def made(**options):
    defaults = {"tokenizer": tokenizer_folder, "sequence_length": T, "sources": sources}
    return text(**{**defaults, "test_fraction": 0.2, **options})

  return made


def everything(rows):
  return rows.read(np.arange(len(rows)))


def examples(rows):
  """(domain, inputs, labels) of each segment of each row."""
  batch = everything(rows)
  for row in range(len(rows)):
    for segment in range(1, batch["segment_ids"][row].max() + 1):
      own = batch["segment_ids"][row] == segment
      yield (
        int(batch["domain"][row]),
        tuple(batch["tokens"][row, own].tolist()),
        tuple(batch["label"][row, own].tolist()),
      )


def written(sources):
  return {
    domain: [json.loads(line)["text"] for line in open(source["path"])]
    for domain, source in sources.items()
  }


def test_what_a_row_holds(make):
  data = make()
  rows = data.train
  batch = everything(rows)
  shapes = {key: (values.shape[1:], values.dtype.name) for key, values in batch.items()}
  assert shapes == {
    "tokens": ((T,), "int32"),
    "label": ((T,), "int32"),
    "mask": ((T,), "bool"),
    "segment_ids": ((T,), "int32"),
    "positions": ((T,), "int32"),
    "domain": ((), "int32"),
    "index": ((), "int32"),
  }
  padding = batch["segment_ids"] == 0
  assert not batch["tokens"][padding].any() and not batch["positions"][padding].any()
  assert (batch["label"][padding] == -1).all() and padding.any()
  np.testing.assert_array_equal(batch["mask"], batch["label"] >= 0)
  np.testing.assert_array_equal(batch["mask"], ~padding)
  np.testing.assert_array_equal(batch["index"], np.arange(len(rows)))
  for row in range(len(rows)):
    segments = batch["segment_ids"][row]
    runs = [(key, len(list(own))) for key, own in itertools.groupby(segments.tolist())]
    count = segments.max()
    assert [key for key, _ in runs] == [*range(1, count + 1)] + [0] * int(segments[-1] == 0)
    positions = [p for key, length in runs for p in (range(length) if key else [0] * length)]
    np.testing.assert_array_equal(batch["positions"][row], positions)
    one = rows[row]
    for key, values in batch.items():
      np.testing.assert_array_equal(one[key], values[row])
  assert (rows.sequence_length, len(rows.tokenizer_sha256)) == (T, 64)
  assert data.num_classes == 259 and data.sequence_length == T
  assert (data.domains, data.name) == (("first", "second"), "text")


@pytest.mark.parametrize("pack", ["pack", "none", "concat"])
@pytest.mark.parametrize("length", [1, 7, T, 400])
def test_each_token_but_the_first_of_a_document_is_a_label_once(make, sources, pack, length):
  data = make(pack=pack, sequence_length=length)
  encode = data.tokenizer.backend_tokenizer.encode
  wanted = collections.Counter()
  for domain, texts in written(sources).items():
    for each in texts:
      ids = [*encode(each).ids, data.tokenizer.eos_token_id]
      wanted.update((data.domains.index(domain), *pair) for pair in itertools.pairwise(ids))
  got = collections.Counter()
  for rows in (data.train, data.test):
    batch = everything(rows)
    domain = np.broadcast_to(batch["domain"][:, None], batch["label"].shape)
    own = batch["mask"]
    columns = (values[own].tolist() for values in (domain, batch["tokens"], batch["label"]))
    got.update(zip(*columns, strict=True))
  assert got == wanted


@pytest.mark.parametrize("pack", ["pack", "none", "concat"])
def test_rows_taken_apart_are_the_documents(make, sources, pack):
  data = make(pack=pack)
  ends = data.tokenizer.eos_token_id
  begun = collections.defaultdict(list)
  for rows in (data.train, data.test):
    for domain, inputs, labels in examples(rows):
      assert inputs[1:] == labels[:-1]  # no label but the last is outside of the example
      assert ends not in inputs  # so none is of the next document
      begun[domain, inputs[0]].append((inputs, labels[-1]))
  for index, domain in enumerate(data.domains):
    for each in written(sources)[domain]:
      ids = [*data.tokenizer.backend_tokenizer.encode(each).ids, ends]
      assert follows(begun, index, tuple(ids)), each
  assert not any(begun.values())  # and nothing is left over


def follows(begun, domain, ids):
  """Takes examples out of `begun` that together are `ids`; False, and none taken, if none do."""
  if len(ids) == 1:
    return True
  for place, (inputs, label) in enumerate(begun[domain, ids[0]]):
    if ids[: len(inputs) + 1] == (*inputs, label):
      taken = begun[domain, ids[0]].pop(place)
      if follows(begun, domain, ids[len(inputs) :]):
        return True
      begun[domain, ids[0]].insert(place, taken)
  return False


def test_packing_moves_examples_and_changes_none(make):
  packed, single = make(), make(pack="none")
  for name in ("train", "test"):
    rows = getattr(packed, name), getattr(single, name)
    assert collections.Counter(examples(rows[0])) == collections.Counter(examples(rows[1]))
  assert len(packed.train) < 0.9 * len(single.train)
  assert everything(packed.train)["mask"].mean() > 0.97
  assert (everything(single.train)["segment_ids"] <= 1).all()


def test_only_the_last_row_of_a_domain_has_padding_when_documents_are_joined(make):
  data = make(pack="concat")
  batch = everything(data.train)
  short = np.flatnonzero(~batch["mask"].all(axis=1))
  last = np.flatnonzero(np.diff(batch["domain"], append=2))
  assert set(short) <= set(last)


def test_the_seed_moves_and_the_same_one_does_not(make):
  a, b, c = everything(make().train), everything(make().train), everything(make(split_seed=1).train)
  for key, values in a.items():
    np.testing.assert_array_equal(values, b[key])
  assert a["tokens"].shape != c["tokens"].shape or (a["tokens"] != c["tokens"]).any()


def beginnings(data, rows):
  """The numbers of the documents that begin in rows, by domain."""
  return {
    (domain, data.tokenizer.decode(inputs).split(":")[0])
    for domain, inputs, _ in examples(rows)
    if ":" in data.tokenizer.decode(inputs)
  }


def test_documents_are_for_training_or_for_testing(make, sources):
  data = make(pack="none", sequence_length=400)
  train, test = (beginnings(data, rows) for rows in (data.train, data.test))
  assert not train & test and len(train | test) == 85
  assert 8 <= len(test) <= 26  # 17 of 85 are expected
  assert {domain for domain, _ in test} == {0, 1}
  # Other documents change nothing for these.
  path = sources["first"]["path"]
  content = Path(path).read_text()
  with open(path, "w") as file:
    file.write(json.dumps({"text": "999:more"}) + "\n" + content)
  again = make(pack="none", sequence_length=400)
  assert beginnings(again, again.test) - {(0, "999")} == test


@pytest.mark.parametrize("pack", ["none", "pack"])
def test_documents_held_out_for_validation_are_on_no_other_side(make, sources, pack):
  # The same text in both domains, which must not be on two sides either.
  with open(sources["second"]["path"], "a") as file:
    file.write(Path(sources["first"]["path"]).read_text())
  data = make(pack=pack, sequence_length=400, validation_fraction=0.25)
  sides = [beginnings(data, rows) for rows in (data.train, data.test, data.validation)]
  assert sum(map(len, sides)) == len(set.union(*sides)) == 85
  assert 8 <= len(sides[2]) <= 26  # 17 of the 68 that are not for testing are expected
  assert {domain for domain, _ in sides[2]} == {0, 1}
  without = make(pack=pack, sequence_length=400)
  assert without.validation is None
  assert beginnings(without, without.test) == sides[1]
  assert beginnings(without, without.train) == sides[0] | sides[2]


def test_validation_needs_a_document(make, sources):
  with pytest.raises(KdjaxError, match=r"validation_fraction = 0\.5 leaves no document to"):
    make(sources={"one": sources["first"]}, max_documents=2, validation_fraction=0.5)


def test_duplicates_are_left_out_and_told(make, sources, caplog):
  before = make()
  path = sources["second"]["path"]
  content = Path(path).read_text()
  with open(path, "w") as file:
    file.write(content + content)
  with caplog.at_level("INFO", logger="kdjax"):
    after = make()
  assert "second: 25 duplicates" in caplog.text
  for name in ("train", "test"):
    a, b = (collections.Counter(examples(getattr(d, name))) for d in (before, after))
    assert a == b


def test_of_documents_in_several_domains_the_first_keeps_them(make, sources, caplog):
  shared = Path(sources["second"]["path"]).read_text().splitlines()[:4]
  path = sources["first"]["path"]
  content = Path(path).read_text()
  # Not next to each other, and one of them twice in its own domain.
  Path(path).write_text("\n".join([shared[0], *content.splitlines(), *shared[1:], shared[1]]))
  with caplog.at_level("INFO", logger="kdjax"):
    data = make(pack="none", sequence_length=400)
  assert "second: 4 documents that first has too are left out" in caplog.text
  assert "first: 1 duplicates of other documents are left out" in caplog.text
  texts = [json.loads(line)["text"] for line in shared]
  got = collections.Counter(
    (domain, data.tokenizer.decode(inputs))
    for rows in (data.train, data.test)
    for domain, inputs, _ in examples(rows)
  )
  assert [got[0, each] for each in texts] == [1] * 4
  assert [got[1, each] for each in texts] == [0] * 4
  assert sum(got.values()) == 60 + 25
  turned = make(pack="none", sequence_length=400, sources=dict(reversed(sources.items())))
  decoded = {
    (turned.domains[domain], turned.tokenizer.decode(inputs))
    for rows in (turned.train, turned.test)
    for domain, inputs, _ in examples(rows)
  }
  assert all(("second", each) in decoded and ("first", each) not in decoded for each in texts)


def test_a_domain_that_others_hold_whole_is_told(make, sources):
  with pytest.raises(KdjaxError, match=r"sources\.again: all of its documents.*\(first\).*first"):
    make(sources={"first": sources["first"], "again": sources["first"]})


def test_two_documents_are_enough_and_one_is_not(make, sources, tmp_path):
  path = tmp_path / "few.jsonl"
  path.write_text('{"text": "one"}\n{"text": "two"}\n')
  few = {"few": {"kind": "jsonl", "path": str(path)}}
  data = make(sources=few, test_fraction=0.01)
  assert (len(data.train), len(data.test)) == (1, 1)
  assert len(make(sources=few, test_fraction=0.99).train) == 1
  with pytest.raises(KdjaxError, match="leaves no document to test on"):
    make(sources=few, max_documents=1)


def test_spans_are_the_examples_and_their_keys_their_content(make):
  packed, single = make().train, make(pack="none").train
  keys = {}
  for position in range(len(single)):
    (span,) = single.spans(position)
    row = single[position]
    assert (span.start, span.stop) == (0, row["mask"].sum())
    keys.setdefault(span.key, row["tokens"][span.start : span.stop])
  for position in range(len(packed)):
    row, spans = packed[position], packed.spans(position)
    assert len(spans) == row["segment_ids"].max()
    for number, (key, start, stop) in enumerate(spans, 1):
      np.testing.assert_array_equal(
        np.flatnonzero(row["segment_ids"] == number), range(start, stop)
      )
      np.testing.assert_array_equal(keys[key], row["tokens"][start:stop])
      assert len(key) == 16


def test_loss_weights_come_with_their_labels(make, tmp_path):
  path = tmp_path / "weighted.jsonl"
  spans = [{"text": "abc", "weight": 0.5}, {"text": "de", "weight": 0}, {"text": "f", "weight": 2}]
  path.write_text("".join(json.dumps({"spans": spans, "id": i}) + "\n" for i in range(1)))
  plain = {"kind": "jsonl", "path": str(tmp_path / "plain.jsonl")}
  (tmp_path / "plain.jsonl").write_text('{"text": "xyz"}\n{"text": "uvw"}\n')
  two = {"a": {"kind": "jsonl", "path": str(path)}, "b": plain}
  data = make(sources=two, pack="none")
  row = data.train[0]
  decode = data.tokenizer.decode
  assert decode(row["tokens"][:6]) == "abcdef"
  np.testing.assert_array_equal(row["weight"][:8], np.float32([0.5, 0.5, 0, 0, 2, 2, 0, 0]))
  np.testing.assert_array_equal(row["mask"][:8], [1, 1, 0, 0, 1, 1, 0, 0])
  assert [decode([label]) for label in row["label"][row["mask"]]] == ["b", "c", "f", EOS]
  np.testing.assert_array_equal(data.train[1]["weight"][:5], np.float32([1, 1, 1, 0, 0]))
  assert "weight" in data.test[0]


def test_the_library_is_there_for_everyone(make, monkeypatch):
  # Reading the tokenizer takes seconds; here it is the one that the other tests have read.
  monkeypatch.setattr(sys.modules["kdjax.data.text.dataset"], "load_tokenizer", lambda _: smollm2())
  data = make(sources=None, sequence_length=64, max_documents=12)
  assert data.domains == ("code", "docs") and data.num_classes == 49152
  batch = everything(data.train)
  assert set(batch["domain"]) == {0, 1} and batch["label"].max() < 49152
  code = data.tokenizer.decode(batch["tokens"][batch["domain"] == 0].ravel())
  assert "\nimport sys\n" in code and "def " in code
  docs = data.tokenizer.decode(batch["tokens"][batch["domain"] == 1].ravel())
  assert "Return" in docs and "\nimport sys\n" not in docs


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tokenizer": "/none"}, "tokenizer: /none does not exist"),
    ({"sequence_length": 0}, "sequence_length = 0 must be at least 1"),
    ({"max_documents": 0}, "max_documents = 0 must be at least 1"),
    ({"max_tokens": -1}, "max_tokens = -1 must be at least 1"),
    ({"test_fraction": 0.0}, r"test_fraction = 0.0 must lie in \(0, 1\)"),
    ({"test_fraction": float("nan")}, r"test_fraction = nan must lie in \(0, 1\)"),
    ({"validation_fraction": 1.0}, r"validation_fraction = 1.0 must lie in \[0, 1\)"),
    ({"validation_fraction": -0.1}, r"validation_fraction = -0.1 must lie in \[0, 1\)"),
    ({"pack": "tight"}, "pack = 'tight' does not exist; what exists: pack, concat, none"),
    ({"split_seed": -1}, "split_seed = -1 must be at least 0"),
    ({"sources": {"a": {"kind": "csv"}}}, "sources.a.kind = 'csv' does not exist.*parquet"),
    ({"sources": {"a": "code"}}, "sources.a.kind = None does not exist"),
    ({"sources": {"a": {"kind": "jsonl"}}}, "sources.a.path is missing"),
    (
      {"sources": {"a": {"kind": "python", "path": "x"}}},
      "sources.a.path is not a field of kind 'python'.*field",
    ),
    ({"sources": {"a": {"kind": "jsonl", "path": 3}}}, "sources.a.path = 3 is of type int"),
    ({"weights": {"first": 1.0}}, "must name each domain: first, second; got .'first'."),
    ({"weights": {"first": 1.0, "second": -1.0}}, "weights.second = -1.0 must be a number"),
    ({"weights": {"first": 0, "second": 0}}, "are all 0"),
  ],
)
def test_mistakes_are_told(make, options, message):
  with pytest.raises(KdjaxError, match=message):
    make(**options)


def test_a_domain_without_documents_is_named(make, tmp_path):
  path = tmp_path / "empty.jsonl"
  path.write_text('{"text": ""}\n')
  with pytest.raises(KdjaxError, match=r"sources\.void: there are no documents with text"):
    make(sources={"void": {"kind": "jsonl", "path": str(path)}})


def test_rows_have_no_classes(make):
  with pytest.raises(KdjaxError, match=r"no class to split or hide by.*label_fraction = 1"):
    make().train.labels  # noqa: B018
