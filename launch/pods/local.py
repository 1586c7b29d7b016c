"""Starts a training job as several CPU processes of this machine, to try what a pod will do.

python -m launch.pods.local --processes=2 -- --config=configs/digits_kd.py --workdir=runs/pair
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import app, flags

# One process is one host of a pod: a backend of its own, arrays exchanged over the network.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
# Seconds that the others have to save once one has failed; they may be waiting for it for ever.
GRACE_S = 10.0


def commands(processes: int, arguments: Sequence[str], port: int) -> list[list[str]]:
  """The command of each process.

  Args:
    processes: how many, at least 1.
    arguments: flags of `launch.train`.
    port: of the coordinator, free on this machine.
  """
  train = [sys.executable, "-m", "launch.train", *arguments]
  together = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
  return [[*train, *together, f"--process={i}"] for i in range(processes)]


def run(each: Sequence[Sequence[str]]) -> int:
  """Runs the commands side by side until all have ended.

  Their lines are printed with [number] in front. SIGTERM and SIGINT ask all of them to save and
  stop; a second signal ends them at once. When one fails, the others are stopped too.

  Returns:
    0, or the status of the first that failed (128 + the signal of one that was killed).
  """
  signals: list[int] = []
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda seen, frame: signals.append(seen))
  started = [_start(command) for command in each]
  readers = [
    threading.Thread(target=_print_lines, args=(i, process)) for i, process in enumerate(started)
  ]
  for reader in readers:
    reader.start()
  first, told, kill_at = None, 0, None
  while None in (found := [process.poll() for process in started]):
    if first is None and (first := _first_failed(found)):
      print(f"{_ended(*first)}; the others are stopped", flush=True)
      _send(started, signal.SIGTERM)
      kill_at = time.monotonic() + GRACE_S
    if len(signals) > told:
      # jax listens to SIGTERM only, and agrees with the other processes on a step to stop at.
      _send(started, signal.SIGKILL if told else signal.SIGTERM)
      told = len(signals)
    if kill_at and time.monotonic() > kill_at:
      _send(started, signal.SIGKILL)
    time.sleep(0.05)
  for reader in readers:
    reader.join()
  first = first or _first_failed(found)
  if first is None:
    return 0
  number, status = first
  if not signals:  # once more: what the others said as they were stopped stands between
    print(f"{_ended(number, status)}. {_remedy(status)}", flush=True)
  return status if status >= 0 else 128 - status


def _first_failed(found: Sequence[int | None]) -> tuple[int, int] | None:
  """(number, status) of one that has failed, by itself where that can be told."""
  failed = [(number, status) for number, status in enumerate(found) if status]
  # Where one has died within this turn, jax's abort of another is what came of it.
  alone = [each for each in failed if each[1] != -signal.SIGABRT]
  return next(iter(alone or failed), None)


def _ended(number: int, status: int) -> str:
  ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
  return f"process {number} ended {ended}"


def _remedy(status: int) -> str:
  again = "the same command goes on from the last finished checkpoint"
  if status == -signal.SIGKILL:
    return f"Somebody killed it, or the machine ran out of memory; {again}"
  return f"Its own lines above say why; once that is mended, {again}"


def _start(command: Sequence[str]) -> subprocess.Popen:
  return subprocess.Popen(
    command,
    env=os.environ | ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors="replace",
    start_new_session=True,  # Ctrl-C of the terminal comes through here alone
  )


def _print_lines(number: int, process: subprocess.Popen) -> None:
  for line in process.stdout:
    print(f"[{number}] {line.rstrip()}", flush=True)


def _send(started: Sequence[subprocess.Popen], number: int) -> None:
  for process in started:
    if process.poll() is None:
      process.send_signal(number)


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(("localhost", 0))
    return one.getsockname()[1]


def main(argv: list[str]) -> int:
  each = commands(flags.FLAGS.processes, argv[1:], _free_port())
  if not flags.FLAGS.dry_run:
    return run(each)
  for command in each:
    print(*(f"{name}={value}" for name, value in ENVIRONMENT.items()), shlex.join(command))
  return 0


if __name__ == "__main__":
  # Here, since launch.train has a flag of the same name.
  flags.DEFINE_integer("processes", 2, "how many", lower_bound=1)
  flags.DEFINE_bool("dry_run", False, "print the commands and start nothing")
  app.run(main)
