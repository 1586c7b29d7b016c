"""Faults that end processes: signals, one of two, two in one folder, and going on elsewhere."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

from tests.faults import runs
from tests.faults.bench import (
  EVERY,
  MISSED,
  Bench,
  Found,
  checkpoints,
  kill,
  last_line,
  newest,
  unfinished,
)

IN_ONE_RUN = 5  # kills, before it is let end


def sigkill(bench: Bench, most: int, *, inside: bool) -> Found:
  """Up to five kills of one run: while it saves, or at any moment of its life."""
  workdir, before, count = bench.workdir(), {}, 0
  for _ in range(2 * IN_ONE_RUN):
    if count == min(most, IN_ONE_RUN):
      break
    process = bench.start(workdir)
    if inside:
      # What the last kill has left is removed first.
      there = bench.await_(process, lambda: not unfinished(workdir))
      there = there and bench.await_(process, lambda: unfinished(workdir))
      time.sleep(bench.rng.uniform(0, 0.02))
    elif bench.rng.random() < 0.3:
      time.sleep(bench.rng.uniform(0, 8))
      there = process.poll() is None
    else:
      at = newest(workdir)
      there = bench.await_(process, lambda at=at: newest(workdir) > at)
      time.sleep(bench.rng.uniform(0, 0.3))
    killed = there and kill(process) == -signal.SIGKILL
    if not killed:
      process.wait()
      break
    before |= checkpoints(workdir)
    count += not inside or bool(unfinished(workdir))
  return bench.compare(workdir, before, injected=count) if count else MISSED


def sigterm(bench: Bench, most: int) -> Found:
  """A signal that asks the run to stop."""
  workdir, process = bench.begun()
  if process.poll() is not None:
    return MISSED
  status = kill(process, signal.SIGTERM)
  if status or "run the same command to go on" not in bench.said(workdir):
    return Found(f"ended with status {status}: {last_line(bench.said(workdir))}")
  found = bench.compare(workdir, checkpoints(workdir))
  found.outcome = f"saved and stopped, {found.outcome}"
  return found


def one_of_two(bench: Bench, most: int, *, inside: bool) -> Found:
  """One of two processes killed; the other is to end, and the same command to go on."""
  workdir = bench.workdir()
  process = bench.start(workdir, processes=2)
  if inside:
    # The student's: for the teacher's only save, both would be at its end.
    saving = functools.partial(_saving, workdir, EVERY * int(bench.rng.integers(1, 7)))
    there, most_s = bench.await_(process, saving), 0.05
  else:
    at = EVERY * int(bench.rng.integers(0, 6))
    there, most_s = bench.await_(process, lambda: newest(workdir) > at), 0.5
  time.sleep(bench.rng.uniform(0, most_s))
  if not there or process.poll() is not None:
    return MISSED
  which = int(bench.rng.integers(2))
  os.kill(runs.children(process)[which], signal.SIGKILL)
  began = time.monotonic()
  status = process.wait(timeout=300)
  seconds = time.monotonic() - began
  if inside and not unfinished(workdir):
    return MISSED
  told = f"process {which} ended by SIGKILL. " in bench.said(workdir).splitlines()[-1]
  before = checkpoints(workdir)
  found = bench.compare(workdir, before, processes=2)
  if status != 128 + signal.SIGKILL or not told or seconds > 30:
    found.outcome = f"unclear end (status {status}, {seconds:.0f} s), {found.outcome}"
  return found


def other_processes(bench: Bench, most: int) -> Found:
  """Killed as two processes, gone on with as one of two devices, or the other way round."""
  two = bool(bench.rng.integers(2))
  one = {"devices": 2, "mesh.data": 2}
  first, second = ({"processes": 2}, one) if two else (one, {"processes": 2})
  workdir, process = bench.begun(**first)
  if process.poll() is not None:
    return MISSED
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  return bench.compare(workdir, checkpoints(workdir), whole=bench.whole(processes=2), **second)


def other_mesh(bench: Bench, most: int) -> Found:
  """Killed on one device, gone on with on eight."""
  workdir, process = bench.begun()
  if process.poll() is not None:
    return MISSED
  kill(process)
  mesh = {"devices": 8, "mesh.data": 2, "mesh.fsdp": 4}
  return bench.compare(workdir, checkpoints(workdir), whole=bench.whole(), **mesh)


def two_runs(bench: Bench, most: int) -> Found:
  """A second run is started in the folder of one that is under way."""
  workdir, first = bench.begun()
  if first.poll() is not None:
    return MISSED
  first.send_signal(signal.SIGSTOP)  # it would be through before the second has begun
  second = bench.start(workdir).wait(timeout=300)
  first.send_signal(signal.SIGCONT)
  refused = second == 2 and "is in use by another run" in bench.said(workdir)
  before = checkpoints(workdir)
  ended = first.wait(timeout=300) == 0
  found = bench.compare(workdir, before)
  refused = "the second is refused" if refused else "the second is NOT refused"
  found.outcome = f"{refused}, the first {found.outcome if ended else 'fails'}"
  return found


def _saving(workdir: Path, step: int) -> bool:
  return any(path.name.startswith(f"{step}.") for path in unfinished(workdir))
