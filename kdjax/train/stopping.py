"""SIGTERM and SIGINT as a question that the loop asks after each step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
  """Catches the first SIGTERM or SIGINT; a second one ends the process at once.

  Yields:
    A function that is True once a signal has come. Outside the main thread (a notebook's worker)
    signals stay as they are and it is always False.
  """
  seen: list[int] = []

  def note(number, frame):
    if seen:
      raise KeyboardInterrupt
    seen.append(number)

  try:
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:
    before = {}
  try:
    yield lambda: bool(seen)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
