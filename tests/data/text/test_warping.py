"""Alignment by spelling: the official code's paths, and what holds for any two tokenizations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdjax.data.text.warping import edit_distance, one_to_one, spelled, warp

STORED = np.load(Path(__file__).parents[3] / "third_party/reference/specializing_small_lms.npz")
CUTS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def tokens(text: str, cuts: list[int]) -> list[str]:
  out, place = [], 0
  for size in cuts:
    out.append(text[place : place + size])
    place += size
  return [piece for piece in [*out, text[place:]] if piece]


@pytest.mark.parametrize("number", range(4))
def test_the_paths_of_the_official_code(number):
  teacher = STORED[f"{number}_teacher"].tolist()
  student = [spelled(token) for token in STORED[f"{number}_student"].tolist()]
  path, cost = warp(teacher, student)
  np.testing.assert_array_equal(path, STORED[f"{number}_path"])
  assert cost == STORED[f"{number}_cost"]


def test_edit_distances():
  assert edit_distance("kitten", "sitting") == 3  # k to s, e to i, a g at the end
  assert edit_distance("", "abc") == edit_distance("abc", "") == 3 and not edit_distance("a", "a")


def test_a_number_that_one_side_writes_in_two_is_nobodys():
  teacher, student = [" sold", " 13", "22", " clips"], [" sold", " 1322", " clips"]
  assert one_to_one(teacher, student).tolist() == [0, -1, 3]
  assert one_to_one(student, teacher).tolist() == [0, -1, -1, 2]


@given(st.text("ab c", min_size=1, max_size=24).filter(str.strip), CUTS, CUTS)
def test_paths_are_monotone_and_leave_nothing_out(text, one, other):
  teacher, student = tokens(text, one), tokens(text, other)
  path, cost = warp(teacher, student)
  steps = np.diff(path, axis=0)
  assert path[0] == (0, 0) and path[-1] == (len(teacher) - 1, len(student) - 1)
  assert np.isin(steps, (0, 1)).all() and (steps.sum(1) > 0).all()
  assert {i for i, _ in path} == set(range(len(teacher)))
  assert {j for _, j in path} == set(range(len(student)))
  assert cost == sum(
    edit_distance(teacher[i].replace(" ", ""), student[j].replace(" ", "")) for i, j in path
  )
  # Spaces in front of both change nothing.
  again, _ = warp([" " + teacher[0], *teacher[1:]], [" " + student[0], *student[1:]])
  assert again == path


@given(st.lists(st.sampled_from(["a", "bb", " c", "ddd"]), min_size=1, max_size=12))
def test_equal_tokenizations_are_aligned_step_by_step(same):
  path, cost = warp(same, same)
  assert cost == 0 and path == [(i, i) for i in range(len(same))]
  np.testing.assert_array_equal(one_to_one(same, same), np.arange(len(same)))
