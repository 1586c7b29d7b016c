"""Readers: what they give, in which order, and how they refuse what they cannot read."""

import ast
import bisect
import dataclasses
import io
import json
import json.encoder
import tokenize
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdjax.data.text.documents import chat, jsonl, parquet, text_folder
from kdjax.data.text.python_library import _part, python_library
from kdjax.errors import KdjaxError


def lines(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def texts(documents):
  return [document.text for document in documents.read()]


def test_a_folder_is_read_by_name(tmp_path):
  (tmp_path / "in").mkdir()
  for name, text in {"b.txt": "bé\r\n", "a.txt": "", "in/c.txt": "c", "d.md": "d"}.items():
    (tmp_path / name).write_bytes(text.encode())
  assert texts(text_folder(tmp_path)) == ["", "bé\r\n", "c"]
  assert texts(text_folder(tmp_path, "*.md")) == ["d"]


def test_lines_fields_and_spans(tmp_path):
  spans = [{"text": "ab", "weight": 0.5}, {"text": "", "weight": 2}, {"text": "c"}]
  path = lines(tmp_path / "a.jsonl", {"text": "one"}, {"spans": spans})
  path.write_text(path.read_text() + "\n  \n" + '{"text": "two"}')
  lines(tmp_path / "b.jsonl", {"text": "three"})
  read = list(jsonl(path).read())
  assert [d.text for d in read] == ["one", "abc", "two"]
  assert read[1].weights == ((0, 2, 0.5), (2, 2, 2.0), (2, 3, 1.0))
  assert read[2].where == f"{path}, line 5"
  assert texts(jsonl(tmp_path)) == ["one", "abc", "two", "three"]
  assert texts(jsonl(lines(tmp_path / "c.jsonl", {"body": "x"}), field="body")) == ["x"]


def test_parquet(tmp_path):
  table = pa.table({"text": ["one", None, "drei ß"], "id": [1, 2, 3]})
  pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
  assert texts(parquet(tmp_path / "a.parquet")) == ["one", "", "drei ß"]
  large = pa.table({"body": pa.array(["x"], pa.large_string())})
  pq.write_table(large, tmp_path / "b.parquet")
  assert texts(parquet(tmp_path / "b.parquet", "body")) == ["x"]


def bad_utf8(path):
  path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
  return path


def bad_parquet(path):
  column = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
  pq.write_table(pa.table({"text": column}), path)
  return path


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda f: text_folder(f / "none"), "does not exist"),
    (lambda f: text_folder(f), r"has no file '\*\*/\*.txt'"),
    (lambda f: jsonl(bad_utf8(f / "a")), "a, line 2 is not UTF-8.*0xe9.*iconv"),
    (lambda f: parquet(bad_parquet(f / "a")), "a, record 1 is not UTF-8"),
    (lambda f: jsonl(lines(f / "a", {"text": 3})), "line 1: 'text' is 3; a string is wanted"),
    (lambda f: jsonl(lines(f / "a", {"b": ""})), "line 1 has no field 'text'; it has b"),
    (lambda f: jsonl(lines(f / "a", ["a"])), "line 1 is .*an object is wanted"),
    (lambda f: jsonl(lines(f / "a", {"spans": "a"})), "'spans' is \"a\"; a list"),
    (
      lambda f: jsonl(lines(f / "a", {"spans": [{"text": "a", "weight": -1}]})),
      "a span has the weight -1; a number >= 0",
    ),
    (lambda f: chat(lines(f / "a", {"messages": [{"role": "user"}]})), "must be a list of mess"),
    (lambda f: python_library("tests"), "fields code, docs, all; field is 'tests'"),
  ],
)
def test_what_cannot_be_read_is_told_with_its_place(tmp_path, make, message):
  with pytest.raises(KdjaxError, match=message):
    list(make(tmp_path).read())


def test_json_and_parquet_that_are_damaged(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
  with pytest.raises(KdjaxError, match=r"a\.jsonl, line 2 is no JSON"):
    list(jsonl(tmp_path / "a.jsonl").read())
  pq.write_table(pa.table({"text": ["a" * 100] * 50}), tmp_path / "a.parquet")
  whole = (tmp_path / "a.parquet").read_bytes()
  (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(KdjaxError, match=r"a\.parquet is no readable Parquet file"):
    list(parquet(tmp_path / "a.parquet").read())
  pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
  for field, message in {"text": "holds int64", "body": "no column 'body'; it has text"}.items():
    with pytest.raises(KdjaxError, match=message):
      list(parquet(tmp_path / "b.parquet", field).read())


def test_identities_show_changes(tmp_path):
  path = lines(tmp_path / "a.jsonl", {"text": "one"})
  first = jsonl(path).identity
  assert jsonl(path).identity == first != jsonl(path, field="body").identity
  lines(path, {"text": "other"})
  assert jsonl(path).identity != first


def comments(source):
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  return [token.string for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("module", [bisect, dataclasses, json.encoder])
def test_code_is_the_library_without_its_docstrings(module):
  whole = Path(module.__file__).read_text()
  code, docs = (_part(whole, module.__name__, field) for field in ("code", "docs"))
  tree = ast.parse(whole)
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  found = 0
  for node in ast.walk(tree):
    if isinstance(node, kinds) and (doc := ast.get_docstring(node)) is not None:
      assert doc in docs
      found += 1
      node.body = node.body[1:]
      if not node.body and not isinstance(node, ast.Module):
        node.body = [ast.Expr(ast.Constant(...))]
  assert found > 0
  assert ast.dump(ast.parse(code)) == ast.dump(tree)
  assert comments(code) == comments(whole)


def test_the_library_leaves_out_tests_and_installed_packages():
  names = [document.where for document in python_library("all").read()]
  assert names == sorted(names) and len(names) > 400
  assert not [name for name in names if "/test/" in name or "site-packages" in name]
  assert next(python_library("docs").read()).where == names[0]
