"""Orbax's time limits, counted by a clock that nobody sets."""

from __future__ import annotations

import contextlib
import importlib
import time
import types

# They ask the clock on the wall how long a save has taken. One that is set forward meanwhile, or a
# machine that slept, would end a good save as if it had hung.
_MODULES = ("future", "signaling_client")
_STEADY = types.SimpleNamespace(time=time.monotonic)


def steady_limits() -> None:
  """Lets those modules of Orbax read the monotonic clock; does nothing where they are not."""
  for name in _MODULES:
    with contextlib.suppress(ImportError):
      importlib.import_module(f"orbax.checkpoint._src.futures.{name}").time = _STEADY
