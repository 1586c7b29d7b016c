"""Where a run's time goes, and a trace of some of its steps."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from kdjax.errors import KdjaxError, writing

PARTS = ("data", "eval", "save")
FOLDER = "profile"


class Stopwatch:
  """Seconds that this process spent on each of `PARTS`; the rest is `compute`.

  The device works while the host reads ahead: what is told as `data` is what the loop waited for.
  """

  def __init__(self):
    self._spent = dict.fromkeys(PARTS, 0.0)
    self._since = time.monotonic()

  @contextlib.contextmanager
  def on(self, part: str) -> Iterator[None]:
    """Counts what happens inside as one part."""
    started = time.monotonic()
    try:
      yield
    finally:
      self._spent[part] += time.monotonic() - started

  def lap(self, steps: int) -> tuple[float, dict[str, float]]:
    """(seconds since the last lap, `seconds/<part>` for each of so many steps)."""
    now = time.monotonic()
    whole, spent = max(now - self._since, 1e-9), self._spent
    spent["compute"] = max(whole - sum(spent.values()), 0.0)
    self._since, self._spent = now, dict.fromkeys(PARTS, 0.0)
    return whole, {f"seconds/{part}": spent[part] / max(steps, 1) for part in sorted(spent)}


def profile_range(told: str, total_steps: int) -> range:
  """The steps of "10:13": 10, 11 and 12, counted from 1; none of "".

  Raises:
    KdjaxError: something else, or steps that the run does not have.
  """
  if not told:
    return range(0)
  found = re.fullmatch(r"(\d+):(\d+)", told)
  steps = range(*map(int, found.groups())) if found else range(0)
  if not steps or steps[0] < 1:
    raise KdjaxError(f"config.profile = {told!r} must be FIRST:END, such as 10:13 for 10 to 12")
  if steps[-1] > total_steps:
    raise KdjaxError(f"config.profile = {told!r} ends after config.total_steps = {total_steps}")
  return steps


class Profiler:
  """Writes a trace of some steps to FOLDER/profile, for TensorBoard, Perfetto or xprof.

  Only around these steps does the host wait for the device.
  """

  def __init__(self, steps: range, folder: Path):
    self._steps, self._folder, self._running = steps, folder / FOLDER, False

  def before(self, step: int) -> None:
    """To be called before each step, counted from 1."""
    if self._steps and step == self._steps[0]:
      with writing(self._folder):
        jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
      self._running = True

  def after(self, step: int, outputs: Any) -> None:
    """To be called after each step, with what it gave."""
    if self._running and step == self._steps[-1]:
      jax.block_until_ready(outputs)
      self.close()

  def close(self) -> None:
    """Ends a trace that is not at its end."""
    if self._running:
      self._running = False
      with writing(self._folder):
        jax.profiler.stop_trace()
