"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from kdjax.errors import KdjaxError
from kdjax.train.checkpoint import writable

FILE = ".in_use"


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
  """Holds a folder for this run; its processes hold it together, by the first of them.

  The operating system lets go of what a killed process held, so that a resumption finds the folder
  free. File systems without locks are used as they are.

  Args:
    folder: made where it is not there, and removed again if nothing was written to it.

  Raises:
    KdjaxError: another run holds it, or it cannot be written to.
  """
  if jax.process_index() != 0:
    yield
    return
  was_there = folder.is_dir()
  writable(folder)
  path = folder / FILE
  file = _locked(path)
  try:
    yield
  finally:
    # Removed while it is held: see `_locked` for one that was opened in between.
    path.unlink(missing_ok=True)
    os.close(file)
    if not was_there:
      with contextlib.suppress(OSError):  # it is empty no more
        folder.rmdir()


def _locked(path: Path) -> int:
  """A descriptor of the file, which nobody else holds."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      told = os.read(file, 4096)
      os.close(file)
      raise KdjaxError(
        f"{path.parent} is in use by another run{_holder(told)}; wait for it, stop it, or choose"
        " another --workdir"
      ) from None
    except OSError:
      return file
    # The one before may have removed the file after it was opened here.
    if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
      break
    os.close(file)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  own = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
  os.truncate(file, 0)
  os.write(file, json.dumps(own).encode())
  return file


def _holder(told: bytes) -> str:
  try:
    own = json.loads(told)
    return f": process {own['process']} on {own['host']}, since {own['since']}"
  except (ValueError, KeyError, TypeError):
    return ""
