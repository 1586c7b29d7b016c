"""How large a teacher suits a student: the law of the capacity gap, fitted or as published.

A larger teacher is not always a better one. The law says that the size of the best teacher is
proportional to the student's. Sizes are numbers of parameters; any unit will do, the same for all.

Reference:
  Zhang et al., "Towards the Law of Capacity Gap in Distilling Language Models", ACL 2025,
  https://arxiv.org/abs/2311.07052. The ratio is published; how it was fitted is not, so that the
  fit is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kdjax.errors import KdjaxError

RATIO = 2.5  # of GPT-2 and Pythia students below 3B parameters


class Run(NamedTuple):
  """One student distilled from one teacher. Several runs of a pair, as of seeds, are welcome.

  Attributes:
    student: its size.
    teacher: its size.
    score: what the student reached.
  """

  student: float
  teacher: float
  score: float


class Best(NamedTuple):
  """The best teacher of one student.

  Attributes:
    student: its size.
    teacher: the size.
    interior: whether the runs have a maximum between the smallest and the largest teacher. Where
      not, `teacher` is merely the best of those that were tried.
  """

  student: float
  teacher: float
  interior: bool


class CapacityGap(NamedTuple):
  """The fitted law: best teacher = ratio * student.

  Attributes:
    ratio: k.
    interval: of k, from a bootstrap over students; None for one student.
    best: the best teacher of each student, from the smallest student on.
  """

  ratio: float
  interval: tuple[float, float] | None
  best: tuple[Best, ...]


def fit_capacity_gap(
  runs: Iterable[Run],
  *,
  higher_is_better: bool = True,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> CapacityGap:
  """Fits the law to a grid of runs.

  The best teacher of each student comes from `best_teacher`; the ratio is that of least squares for
  a line through the origin, in which large students weigh most. The interval holds the middle
  `level` of the ratios of as many students drawn with replacement. With few students it is too
  narrow, and it knows nothing of larger ones.

  Args:
    runs: of one or more students, each with two or more teachers.
    higher_is_better: False for scores such as a loss.
    level: in (0, 1).
    resamples: number of draws.
    seed: of the draws; the same seed gives the same interval.

  Returns:
    The law. Look at `best`: students without an interior optimum pull the ratio towards the ends of
    their grid.

  Raises:
    KdjaxError: no runs, sizes or scores that are not finite (sizes also positive), or a student
      with one teacher alone.

  Example:
    >>> score = lambda student, teacher: -(math.log(teacher / student) - math.log(3)) ** 2
    >>> runs = [Run(s, s * r, score(s, s * r)) for s in (10, 20, 40) for r in (1.5, 2, 4, 8)]
    >>> law = fit_capacity_gap(runs)
    >>> print(f"{law.ratio:.3f}", [best.interior for best in law.best])
    3.000 [True, True, True]
  """
  if not 0 < level < 1:
    raise KdjaxError(f"fit_capacity_gap: level is {level}; it must lie between 0 and 1")
  if resamples < 1:
    raise KdjaxError(f"fit_capacity_gap: resamples is {resamples}; at least 1 wanted")
  runs = [Run(*run) for run in runs]
  if not runs:
    raise KdjaxError("fit_capacity_gap: no runs; give at least two teachers of one student")
  for run in runs:
    if not (0 < run.student < math.inf and 0 < run.teacher < math.inf and math.isfinite(run.score)):
      raise KdjaxError(f"fit_capacity_gap: {run}; positive sizes and a finite score wanted")
  best = []
  for student in sorted({run.student for run in runs}):
    own = [run for run in runs if run.student == student]
    scores = [run.score if higher_is_better else -run.score for run in own]
    best.append(Best(student, *best_teacher([run.teacher for run in own], scores)))
  students, teachers = (np.array([getattr(b, n) for b in best]) for n in ("student", "teacher"))
  interval = None
  if len(best) > 1:
    draws = np.random.default_rng(seed).integers(len(best), size=(resamples, len(best)))
    ratios = _slope(students[draws], teachers[draws])
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    interval = float(low), float(high)
  return CapacityGap(float(_slope(students, teachers)), interval, tuple(best))


def best_teacher(teachers: Sequence[float], scores: Sequence[float]) -> tuple[float, bool]:
  """The teacher's size with the largest score, between those that were tried.

  The maximum of a parabola through the scores over the logarithm of the size. Where the parabola
  has none inside the sizes, or there are fewer than three, it is the size with the best mean score.

  Args:
    teachers: two or more sizes, repeats allowed.
    scores: of each; larger is better.

  Returns:
    (the size, whether it is a maximum inside).

  Raises:
    KdjaxError: fewer than two different sizes.
  """
  sizes = np.unique(np.asarray(teachers, np.float64))
  if len(sizes) < 2:
    raise KdjaxError(
      f"best_teacher: the teachers' sizes are {sizes.tolist()}; at least two different ones wanted"
    )
  x, y = np.log(np.asarray(teachers, np.float64)), np.asarray(scores, np.float64)
  if len(sizes) > 2:
    middle = x.mean()
    square, slope, _ = np.polyfit(x - middle, y, 2)
    if square < 0:
      top = middle - slope / (2 * square)
      if np.log(sizes[0]) < top < np.log(sizes[-1]):
        return float(np.exp(top)), True
  means = [y[np.asarray(teachers) == size].mean() for size in sizes]
  return float(sizes[int(np.argmax(means))]), False


def choose_teacher(student: float, available: Sequence[float], *, ratio: float = RATIO) -> float:
  """Of the teachers that there are, the one nearest to `ratio` times the student, by their ratio.

  Args:
    student: its size.
    available: sizes of teachers.
    ratio: of the law; the published one, or that of `fit_capacity_gap`.

  Returns:
    One of `available`; of two that are equally near the smaller, which costs less.

  Raises:
    KdjaxError: no teacher, or a size or ratio that is not positive.

  Example:
    >>> choose_teacher(3.0, [7, 13, 70])  # billions: MiniMA's, which did best with 7
    7
  """
  if not len(available):
    raise KdjaxError("choose_teacher: available is empty; give the teachers' sizes")
  if not (student > 0 and ratio > 0 and all(size > 0 for size in available)):
    raise KdjaxError(
      f"choose_teacher: student is {student}, ratio {ratio}, available {list(available)}; positive"
      " numbers wanted"
    )
  return min(sorted(available), key=lambda size: abs(math.log(size / (ratio * student))))


def _slope(students: np.ndarray, teachers: np.ndarray) -> np.ndarray:
  """Of the line through the origin, along the last axis."""
  return (students * teachers).sum(-1) / np.square(students).sum(-1)
