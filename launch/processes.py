"""Start-up of a job of several processes: who they are, and a bounded wait for one another."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from absl import flags

from kdjax.errors import KdjaxError
from kdjax.train.lost import is_lost

COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or detect (see docs/pods.md)"
)
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes run this job")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")
TIMEOUT = flags.DEFINE_float("coordinator_timeout_s", 300.0, "seconds to wait for one another")
HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_timeout_s", 60, "seconds without a sign of life until a process is taken for dead"
)

FLAGS = ("--coordinator", "--processes", "--process")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DETECT = "detect"
GOODBYE_S = 5.0  # that a process which fails waits for the others to fail too
_DAY = 86_400  # seconds
_NAME_THEM = f"Name the processes with {', '.join(FLAGS)}, or clear what names them to run alone"


class _Waits(NamedTuple):
  """Seconds: until all have joined, and until one that is silent is taken for dead."""

  join: float
  heartbeat: int


def join_from_flags() -> None:
  """`join_processes` with what the command line says."""
  join_processes(
    COORDINATOR.value,
    PROCESSES.value,
    PROCESS.value,
    timeout_s=TIMEOUT.value,
    heartbeat_s=HEARTBEAT.value,
  )


def join_processes(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  *,
  timeout_s: float = 300.0,
  heartbeat_s: int = 60,
) -> None:
  """Joins the other processes of this job, where there are others.

  The first that says something counts: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
  and JAX_PROCESS_ID; a step of SLURM with several tasks; a TPU slice of several hosts. The last two
  are left to jax. Without any of them nothing is done: no network, no waiting.

  Args:
    coordinator: host:port at which process 0 listens, or "detect" alone: jax is to find all out.
    processes: how many there are, at least 1.
    process: which one this is, in [0, processes).
    timeout_s: > 0, seconds until those that have not come are given up.
    heartbeat_s: 1 to 86,400, the same for all: seconds after which jax takes a process of which it
      has heard nothing for dead, and ends the others.

  Raises:
    KdjaxError: some of the three are missing or malformed, jax finds no cluster, or the processes
      have not met in time.
  """
  if timeout_s <= 0:
    raise KdjaxError(f"--coordinator_timeout_s = {timeout_s} must be above 0")
  if not 1 <= heartbeat_s <= _DAY:
    raise KdjaxError(f"--heartbeat_timeout_s = {heartbeat_s} must be from 1 to {_DAY}")
  waits = _Waits(timeout_s, heartbeat_s)
  if coordinator == DETECT and processes is None and process is None:
    _initialize("--coordinator=detect", _NAME_THEM, waits)
  elif given := _three(FLAGS, (coordinator, processes, process)):
    _meet(FLAGS, *given, waits)
  elif given := _three(VARIABLES, [os.environ.get(name) or None for name in VARIABLES]):
    _meet(VARIABLES, *given, waits)
  elif cluster := _cluster(os.environ):
    _initialize(cluster, _NAME_THEM, waits)


@contextlib.contextmanager
def one_of_several() -> Iterator[None]:
  """Ends a process that fails within seconds, where it is one of several.

  Python's own end would wait minutes: for saves that want the other processes, and for all of them
  to say goodbye. What failed is told first, so that no thread dump of jax stands before it.
  """
  try:
    yield
  except BaseException as error:
    if not jax.distributed.is_initialized() or (isinstance(error, SystemExit) and not error.code):
      raise
    wait_s = 0.0 if isinstance(error, KeyboardInterrupt) else GOODBYE_S
    if isinstance(error, SystemExit):
      status = error.code if isinstance(error.code, int) else 1
    elif is_lost(error):
      status, wait_s = 2, 1.0
      print(f"error: {_lost(error)}", file=sys.stderr)
    else:
      status = 1
      traceback.print_exception(error)
    # Where all fail alike, each shall have told it before process 0 takes the coordinator along.
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(wait_s)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lost(error: BaseException) -> str:
  told = " ".join(str(error).split())
  return (
    f"process {jax.process_index()} of {jax.process_count()} has lost another one ({told[:300]})."
    " Its own last lines say why. Start all of them again with the same command: they go on from"
    " the last finished checkpoint"
  )


def _three(names, values) -> tuple[str, int, int] | None:
  """Coordinator, count and number; None where none is given."""
  given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
  if not given:
    return None
  told = ", ".join(f"{name}={value}" for name, value in given.items())
  numbers = [str(value) for value in values[1:]]
  if len(given) < 3 or not all(re.fullmatch(r"-?[0-9]{1,9}", each) for each in numbers):
    raise KdjaxError(f"{', '.join(names)} must be set together, the last two to numbers; {told}")
  processes, process = map(int, numbers)
  if processes < 1:
    raise KdjaxError(f"{names[1]} must be at least 1; {told}")
  if not 0 <= process < processes:
    raise KdjaxError(f"{names[2]} must be from 0 to {processes - 1} of {processes}; {told}")
  address = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):([0-9]{1,5})", values[0])
  if not address or not 0 < int(address[2]) < 65536:
    raise KdjaxError(f"{names[0]} must be host:port, with a port from 1 to 65535; {told}")
  return values[0], processes, process


def _cluster(environment: Mapping[str, str]) -> str | None:
  """What in the environment speaks of several processes that jax knows how to find."""
  tasks = environment.get("SLURM_NTASKS", "")
  # A batch script and a shell have the job's number of tasks too, but are none of them.
  if "SLURM_STEP_ID" in environment and tasks.isdigit() and int(tasks) > 1:
    return f"SLURM_NTASKS={tasks}"
  slices = environment.get("MEGASCALE_NUM_SLICES", "")
  if slices.isdigit() and int(slices) > 1:
    return f"MEGASCALE_NUM_SLICES={slices}"
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if "," in environment.get(name, ""):
      return f"{name}={environment[name]}"
  return None


def _meet(names, coordinator: str, processes: int, process: int, waits: _Waits) -> None:
  """Joins through a known coordinator."""
  timeout_s = waits.join
  until = time.monotonic() + timeout_s
  who = f"process {process} of {processes}"
  where = f"{who}, {names[0]}={coordinator}"
  remedy = "Process 0 needs that port free on its host, and each process a number of its own"
  if process > 0:
    _reach(coordinator, until, f"{who}: nobody answers at {names[0]}={coordinator}", timeout_s)
  else:
    _check_free(coordinator, where, remedy)
  _initialize(
    where,
    remedy,
    # Those that process 0 leaves waiting are aborted: where all start together it goes last.
    waits._replace(join=timeout_s + 2 if process == 0 else max(until - time.monotonic(), 1.0)),
    coordinator_address=coordinator,
    num_processes=processes,
    process_id=process,
  )


def _check_free(coordinator: str, where: str, remedy: str) -> None:
  """Raises KdjaxError for a port that is taken: jax's service would end in a segmentation fault."""
  port = int(coordinator.rsplit(":", 1)[1])
  family, host = (socket.AF_INET6, "::") if socket.has_ipv6 else (socket.AF_INET, "")
  try:
    with socket.socket(family) as own:
      own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been given up
      own.bind((host, port))
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise KdjaxError(f"{where}: {error.strerror}. {remedy}") from None


def _reach(coordinator: str, until: float, told: str, timeout_s: float) -> None:
  """Returns once the coordinator's port is open: jax's own wait would end in an abort."""
  host, port = coordinator.rsplit(":", 1)
  while True:
    left = until - time.monotonic()
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=max(left, 0.1)).close()
      return
    except (OSError, UnicodeError) as error:  # not up yet, or its name is not known yet
      if left <= 0.5:
        raise KdjaxError(
          f"{told} within {timeout_s:g} s ({error}). Start process 0 on that host, and see that its"
          " port can be reached from here; --coordinator_timeout_s waits longer"
        ) from None
    time.sleep(0.5)


def _initialize(source: str, remedy: str, waits: _Waits, **known) -> None:
  """`jax.distributed.initialize` that raises: of its own it aborts the process when time is up."""
  failed: list[Exception] = []

  def initialize() -> None:
    try:
      # More time than is waited here, so that the abort would come after the end.
      jax.distributed.initialize(
        initialization_timeout=int(waits.join) + 60,
        heartbeat_timeout_seconds=waits.heartbeat,
        **known,
      )
    except Exception as error:
      failed.append(error)

  # Daemonic: Python's end does not wait for a call that nobody will answer.
  thread = threading.Thread(target=initialize, daemon=True)
  thread.start()
  thread.join(waits.join)
  if thread.is_alive():
    raise KdjaxError(
      f"{source}: not all processes have joined within {waits.join:.3g} s. See that each was"
      " started, with the same coordinator and number of processes and a number of its own;"
      " --coordinator_timeout_s waits longer"
    )
  if failed:
    told = " ".join(str(failed[0]).split())
    raise KdjaxError(f"{source}: jax cannot join the processes ({told}). {remedy}")
