"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
  "name",
  [
    "kdjax.evaluation.attention",
    "kdjax.evaluation.calibration",
    "kdjax.evaluation.classification",
    "kdjax.evaluation.loyalty",
    "kdjax.evaluation.similarity",
  ],
)
def test_examples(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted > 0
  assert result.failed == 0
