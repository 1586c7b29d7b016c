"""What every entry point shares: errors without tracebacks, the log, stopping on signals."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from kdjax.errors import KdjaxError
from kdjax.train.loop import Interrupted
from kdjax.train.stopping import stop_signals
from launch import options


def run(
  job: Callable[[dict[str, Any], Callable[[], bool]], None], *, required: Sequence[str]
) -> None:
  """Runs `job(config, stop)` under absl.

  A user's mistake ends with one message and status 2; a signal saves and ends with status 0.
  """

  def main(argv: list[str]) -> None:
    # Libraries speak through absl; what they fail at reaches the user as an error of ours.
    absl_logging.set_verbosity(absl_logging.FATAL)
    _speak()
    with _one_message():
      try:
        with stop_signals() as stop:
          job(options.CONFIG.value.to_dict(), stop)
      except Interrupted as stopped:
        print(stopped, file=sys.stderr)

  def parse(argv: Sequence[str]) -> list[str]:
    with _one_message():
      return options.parse(argv)

  flags.mark_flags_as_required(["config", *required])
  jax.config.config_with_absl()
  app.run(main, flags_parser=parse)


@contextlib.contextmanager
def _one_message() -> Iterator[None]:
  try:
    yield
  except KdjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _speak() -> None:
  """The library's own messages as plain lines on stderr."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  log = logging.getLogger("kdjax")
  log.setLevel(logging.INFO)
  log.propagate = False
  log.addHandler(handler)
