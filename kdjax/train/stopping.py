"""SIGTERM and SIGINT as a question that the loop asks after each step."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
  """Catches the first SIGTERM or SIGINT; a second one ends the process at once.

  In a job of several processes SIGTERM stays jax's: a process that stopped alone would leave the
  others waiting for it. It tells them, and all stop after the same question: the one after the last
  that any of them has asked. Questions are numbered through the whole job, over all that it trains,
  since jax would never come to the number of a question that is past. SIGINT becomes a SIGTERM
  there.

  Yields:
    A function that is True once a signal has come; all processes of a job must ask it equally
    often. Outside the main thread (a notebook's worker) signals stay as they are and it is always
    False.
  """
  seen: list[int] = []
  together = jax.distributed.is_initialized()
  asked = itertools.count(1)

  def note(number, frame):
    if seen:
      raise KeyboardInterrupt
    seen.append(number)
    if together:
      signal.raise_signal(signal.SIGTERM)

  def stop() -> bool:
    if together:
      return multihost_utils.reached_preemption_sync_point(next(asked))
    return bool(seen)

  caught = (signal.SIGINT,) if together else (signal.SIGTERM, signal.SIGINT)
  try:
    before = {number: signal.signal(number, note) for number in caught}
  except ValueError:
    before = {}
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
