"""What every entry point shares: errors without tracebacks, the log, stopping on signals."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from kdjax.errors import KdjaxError
from kdjax.train.lock import in_use
from kdjax.train.loop import Interrupted
from kdjax.train.stopping import stop_signals
from launch import options, processes


def run(
  job: Callable[[dict[str, Any] | None, Callable[[], bool]], None],
  *,
  required: Sequence[str],
  needs_config: bool = True,
) -> None:
  """Runs `job(config, stop)` under absl; the config is None where none is needed and none given.

  A user's mistake ends with one message and status 2; a signal saves and ends with status 0.
  """

  def main(argv: list[str]) -> None:
    # Libraries speak through absl; what they fail at reaches the user as an error of ours.
    absl_logging.set_verbosity(absl_logging.FATAL)
    _speak()
    sys.unraisablehook = _without_echo(sys.unraisablehook)
    with _one_message():
      processes.join_from_flags()
    with processes.one_of_several(), _one_message():
      try:
        workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
        held = in_use(Path(workdir)) if workdir else contextlib.nullcontext()
        with held, stop_signals() as stop:
          config = options.CONFIG.value
          job(None if config is None else config.to_dict(), stop)
      except Interrupted as stopped:
        print(stopped, file=sys.stderr)

  def parse(argv: Sequence[str]) -> list[str]:
    with _one_message():
      return options.parse(argv)

  flags.mark_flags_as_required(["config", *required] if needs_config else required)
  jax.config.config_with_absl()
  app.run(main, flags_parser=parse)


@contextlib.contextmanager
def _one_message() -> Iterator[None]:
  try:
    yield
  except KdjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _without_echo(before: Callable) -> Callable:
  """An unraisablehook that is silent where Orbax reads or writes what is damaged or full.

  The first array that fails ends Orbax's event loop. Every other one under way then fails to report
  to that loop, from a thread of its own, after the failure itself has been dealt with.
  """

  def hook(seen):
    if not (seen.exc_type is RuntimeError and str(seen.exc_value) == "Event loop is closed"):
      before(seen)

  return hook


def _speak() -> None:
  """The library's own messages as plain lines on stderr."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  log = logging.getLogger("kdjax")
  log.setLevel(logging.INFO)
  log.propagate = False
  log.addHandler(handler)
