"""How the long form counts: examples, likeness, the table and its place in a document."""

import json

import pytest

from tests.faults import __main__ as command
from tests.faults.bench import Found, examples, seen
from tests.faults.table import BEGIN, END, bad, format_table, write_document


def test_examples_are_those_that_a_step_was_given_last(tmp_path):
  rows = [[0, [1, 2]], [1, [3, 4]], [2, [5, 6]], [1, [4, 3]], [2, [6, 7]]]
  (tmp_path / "seen").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  found = seen(tmp_path / "seen")
  assert found == {0: [1, 2], 1: [3, 4], 2: [6, 7]}
  assert examples(found, {0: [1, 2], 1: [3, 4], 2: [6, 7]}) == 0
  assert examples(found, {0: [1, 2], 1: [3, 4], 2: [5, 6]}) == 2  # 7 for 5
  assert examples(found, {0: [1, 2], 1: [3, 4]}) == 2  # a step too many


@pytest.mark.parametrize(
  ("found", "wrong"),
  [
    (Found("went on to the same bits", 5), False),
    (Found("went on to values equal to rounding"), False),
    (Found("left out 1 step, ran to the end", 1, 8), False),
    (Found("left out 2 step, ran to the end", 1, 16), True),
    (Found("went on to the same bits", 1, 8), True),
    (Found("went on to the same bits", 1, 0, 1), True),
    (Found("went on to ANOTHER RESULT"), True),
    (Found("unclear end (status 1), went on to the same bits"), True),
    (Found("came too late", 0), True),
  ],
)
def test_what_counts_as_badly_ended(found, wrong):
  assert bad(found) is wrong


def test_the_table_adds_up_and_has_its_place(tmp_path):
  good, late = Found("went on to the same bits", 5), Found("failed: why", 1, 2, 1)
  table = format_table({"SIGKILL": [good, good], "disk": [good, late]})
  assert table.splitlines()[2:] == [
    "| SIGKILL | 10 | went on to the same bits | 0 | 0 |",
    "| disk | 6 | 5 x went on to the same bits; 1 x failed: why | 2 | 1 |",
  ]
  document = tmp_path / "a.md"
  document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
  for _ in range(2):
    write_document(document, table)
    assert document.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
  document.write_text("no marks")
  with pytest.raises(ValueError, match="must hold"):
    write_document(document, table)


def test_a_fault_that_does_not_exist_is_told(capsys):
  with pytest.raises(SystemExit):
    command.main(["--only=sigkil"])
  assert "there is no fault sigkil; there are sigkill, " in capsys.readouterr().err
