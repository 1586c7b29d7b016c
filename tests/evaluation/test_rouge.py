"""ROUGE-L against values worked by hand."""

import pytest

from kdjax.evaluation.rouge import rouge_l


@pytest.mark.parametrize(
  ("text", "reference", "wanted"),
  [
    ("the cat sat", "The cat was on the mat", 2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),
    ("police kill the gunman", "police killed the gunman", 0.75),
    ("the gunman kill police", "police killed the gunman", 0.5),
    ("same words", "Same, words!", 1.0),
    ("", "anything", 0.0),
    ("one", "two", 0.0),
  ],
)
def test_the_f_measure_of_the_longest_common_subsequence(text, reference, wanted):
  assert rouge_l(text, reference) == pytest.approx(wanted)
