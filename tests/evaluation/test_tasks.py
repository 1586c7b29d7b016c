"""Multiple choice in BIG-bench's format."""

import json
import math

import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation.tasks import grade, read_task

CONTENT = {
  "name": "sums",
  "task_prefix": "Add.",
  "examples": [
    {"input": "1 + 1", "target_scores": {"2": 1, "3": 0}},
    {"input": "2 + 2", "target_scores": {"4": 1, "5": 0, "6": 0}},
    {"input": "1 + 1", "target_scores": {"2": 1, "3": 0}},
  ],
}


@pytest.fixture
def path(tmp_path):
  def write(content):
    file = tmp_path / "task.json"
    file.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return file

  return write


def test_a_prompt_lists_the_options_and_ends_with_the_answers_prefix(path):
  task = read_task(path(CONTENT))
  assert task.name == "sums" and len(task.questions) == 2  # the third is the first again
  first = task.questions[0]
  assert first.prompt.startswith("Add.\nQ: 1 + 1\n  choice: ")
  assert first.prompt.endswith("\nA: ") and first.prompt.count("choice") == 2
  assert first.options == ("2", "3") and first.scores == (1.0, 0.0)
  bare = read_task(path(CONTENT | {"append_choices_to_input": False}))
  assert bare.questions[0].prompt == "Add.\nQ: 1 + 1\nA: "


def test_grades_are_worked_by_hand(path):
  task = read_task(path(CONTENT))
  # right with share 3/4, wrong with 1/2 on "5"
  table = {"2": math.log(3), "3": 0.0, "4": 0.0, "5": math.log(2), "6": 0.0}
  metrics = grade(task, lambda pairs: [table[option] - 7.0 for _, option in pairs])
  assert metrics["multiple_choice_grade"] == 0.5
  first = ((3 / 4 - 1) ** 2 + (1 / 4) ** 2) / 2
  second = ((1 / 4 - 1) ** 2 + (1 / 2) ** 2 + (1 / 4) ** 2) / 3
  assert metrics["brier"] == pytest.approx((first + second) / 2)
  assert metrics["ece"] == pytest.approx((abs(1 - 0.75) + abs(0 - 0.5)) / 2)


def test_equal_options_give_the_uniform_brier_score(path):
  metrics = grade(read_task(path(CONTENT)), lambda pairs: [-1.0] * len(pairs))
  assert metrics["brier"] == pytest.approx((1 / 4 + 2 / 9) / 2)  # (K - 1) / K^2


@pytest.mark.parametrize(
  ("content", "told"),
  [
    ("{", "is not JSON"),
    ({"name": "x"}, "no list 'examples'"),
    ({"examples": [{"input": "x", "target": "y"}]}, "example 0 lacks"),
  ],
)
def test_files_that_are_no_task_are_told(path, content, told):
  with pytest.raises(KdjaxError, match=told):
    read_task(path(content))


def test_a_missing_file_is_told(tmp_path):
  with pytest.raises(KdjaxError, match="No such file"):
    read_task(tmp_path / "none.json")
