"""What every entry point shares: the config flag, errors without tracebacks, stopping on signals."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from kdjax.errors import KdjaxError
from kdjax.train.loop import Interrupted
from kdjax.train.stopping import stop_signals

CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/", lock_config=True)


def run(
  job: Callable[[dict[str, Any], Callable[[], bool]], None], *, required: Sequence[str]
) -> None:
  """Runs `job(config, stop)` under absl.

  A user's mistake ends with one message and status 2; a signal saves and ends with status 0.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments {argv[1:]}; flags start with --")
    # Libraries speak through absl; what they fail at reaches the user as an error of ours.
    absl_logging.set_verbosity(absl_logging.FATAL)
    _speak()
    try:
      with stop_signals() as stop:
        job(CONFIG.value.to_dict(), stop)
    except KdjaxError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)
    except Interrupted as stopped:
      print(stopped, file=sys.stderr)

  flags.mark_flags_as_required(["config", *required])
  jax.config.config_with_absl()
  app.run(main)


def _speak() -> None:
  """The library's own messages as plain lines on stderr."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  log = logging.getLogger("kdjax")
  log.setLevel(logging.INFO)
  log.propagate = False
  log.addHandler(handler)
