"""Two-step arithmetic: questions, and a solver that shows its steps."""

from __future__ import annotations

import re

import numpy as np

from kdjax.errors import KdjaxError
from kdjax.teachers.text import Prompt, TextTeacher, solver

_QUESTION = re.compile(r"(\d+)\*(\d+)\+(\d+)=\?")


def questions(count: int, *, seed: int = 0) -> list[dict[str, str]]:
  """Different questions "a*b+c=?" with a, b from 2 to 9 and c from 10 to 99, and their answers.

  Args:
    count: at most 5,760, the number of all.
    seed: of their order.

  Returns:
    `input` and `gold` of each.
  """
  every = [(a, b, c) for a in range(2, 10) for b in range(2, 10) for c in range(10, 100)]
  if not 1 <= count <= len(every):
    raise KdjaxError(f"count = {count} must lie between 1 and {len(every)}")
  order = np.random.default_rng(seed).permutation(len(every))[:count]
  chosen = [every[i] for i in order]
  return [{"input": f"{a}*{b}+{c}=?", "gold": str(a * b + c)} for a, b, c in chosen]


def solve(prompt: Prompt) -> str:
  """Both steps and the answer, for whatever template the question stands in."""
  found = _QUESTION.findall(prompt.user)
  if not found:
    raise KdjaxError(f"the solver finds no question such as 3*4+25=? in {prompt.user[:60]!r}")
  a, b, c = map(int, found[-1])
  return f"{a}*{b}={a * b}\n{a * b}+{c}={a * b + c}\nAnswer: {a * b + c}"


def two_step_arithmetic() -> TextTeacher:
  """The solver as teacher."""
  return solver("two_step_arithmetic", solve)
