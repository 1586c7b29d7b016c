"""The one error class for mistakes that a user can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class KdjaxError(ValueError):
  """A mistake in a config, a file or an argument, told in one message.

  The message names the field or path, the value found, the value wanted and the remedy. The
  programs under `launch/` print it without a traceback and exit with status 2.
  """


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
  """Puts a config field in front of the KdjaxErrors of functions that do not know it."""
  try:
    yield
  except KdjaxError as error:
    if str(error).startswith(where):
      raise
    raise KdjaxError(f"{where}: {error}") from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Makes a full or broken disk a KdjaxError that names what was written."""
  try:
    yield
  except OSError as error:
    raise KdjaxError(
      f"cannot write {path}: {error.strerror or error}. Free space or mend the disk and run the"
      " same command again; finished checkpoints are kept"
    ) from None


@contextlib.contextmanager
def reading(where: str | Path, remedy: str) -> Iterator[None]:
  """Makes what readers throw at a vanished or damaged file a KdjaxError that names it.

  Args:
    where: the file, or the files of which the reader's own error names one.
    remedy: what to do about a damaged one.
  """
  try:
    yield
  except (RuntimeError, ValueError, OSError, IndexError) as error:
    if not (isinstance(error, FileNotFoundError) or "No such file" in str(error)):
      raise KdjaxError(f"{where} is damaged ({error}); {remedy}") from None
    raise KdjaxError(
      f"{where} is not there any more ({error}). Put it back and run the same command again:"
      " training goes on from the last finished checkpoint"
    ) from None
