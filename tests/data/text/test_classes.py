"""Texts with classes: the library's docstrings, JSONL files, what is refused."""

import json

import numpy as np
import pytest

from kdjax.data import labelled_text, labels, library_docs
from kdjax.data.text.python_library import library_docstrings
from kdjax.errors import KdjaxError
from tests.data.text.helpers import words_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  words_tokenizer().save_pretrained(folder)
  return str(folder)


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def jsonl(tmp_path, tokenizer, train, test=({"text": "one", "label": 0},), **changes):
  fields = {"train": write(tmp_path / "train.jsonl", train), "num_classes": 3}
  fields |= {"test": write(tmp_path / "test.jsonl", test), "sequence_length": 4}
  return labelled_text(tokenizer=tokenizer, **(fields | changes))


def test_rows_hold_tokens_padding_and_labels(tmp_path, tokenizer):
  records = [{"text": "one two", "label": 2}, {"text": "one two three four five"}]
  data = jsonl(tmp_path, tokenizer, records)
  rows = data.train.read(np.arange(2))
  np.testing.assert_array_equal(rows["tokens"], [[3, 4, 0, 0], [3, 4, 5, 6]])
  np.testing.assert_array_equal(rows["segment_ids"], [[1, 1, 0, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(rows["positions"], [[0, 1, 2, 3]] * 2)
  np.testing.assert_array_equal(rows["label"], [2, -1])
  one = data.train[1]
  assert all(np.array_equal(one[key], rows[key][1]) for key in rows)
  # Labels may be hidden and records split off as those of images are.
  assert len(labels.labelled_only(data.train)) == 1


@pytest.mark.parametrize(
  "train, test, told",
  [
    ([{"text": "one", "label": 3}], None, "line 1: 'label' is 3; an integer from 0 to 2"),
    ([{"text": "one", "label": "a"}], None, "'label' is 'a'"),
    ([{"text": "one"}], [{"text": "one"}], "test: .*'label' is -1"),
    ([{"words": "one"}], None, "no field 'text'"),
    ([], None, "holds no text"),
  ],
)
def test_bad_records_are_told_with_their_place(tmp_path, tokenizer, train, test, told):
  with pytest.raises(KdjaxError, match=told):
    jsonl(tmp_path, tokenizer, train, test or [{"text": "one", "label": 0}])


def test_the_librarys_docstrings_by_package(tokenizer):
  task = library_docs(tokenizer=tokenizer, sequence_length=8, classes=4)
  general = library_docs(
    tokenizer=tokenizer, sequence_length=8, classes=4, part="general", max_texts=50
  )
  assert task.num_classes == 4 and set(task.train.labels) == {0, 1, 2, 3}
  assert len(general.train) == 50 and set(general.train.labels) == {-1}
  # What is evaluated is the task's in both, and is in neither's training texts.
  np.testing.assert_array_equal(task.test.tokens, general.test.tokens)
  np.testing.assert_array_equal(task.test.labels, general.test.labels)
  share = len(task.test) / (len(task.test) + len(task.train))
  assert share == pytest.approx(0.25, abs=0.01)
  names = {module.split(".")[0] for module, _ in library_docstrings()}
  assert {"asyncio", "email", "json"} <= names


@pytest.mark.parametrize(
  "changes, told",
  [
    ({"part": "tasks"}, "part = 'tasks' does not exist; what does: task, general"),
    ({"classes": 1}, "classes = 1 must lie between 2 and"),
    ({"test_fraction": 1.0}, "test_fraction: "),
    ({"sequence_length": 0}, "sequence_length = 0 must be at least 1"),
    ({"tokenizer": "/nowhere"}, "tokenizer: /nowhere does not exist"),
  ],
)
def test_bad_arguments(tokenizer, changes, told):
  with pytest.raises(KdjaxError, match=told):
    library_docs(**({"tokenizer": tokenizer, "sequence_length": 8} | changes))
