"""Back to the last good checkpoint, past the batches that led to values that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kdjax.train.checkpoint import Checkpoints
from kdjax.train.metrics import NonFinite

LOG = logging.getLogger("kdjax")
MOST = 5
Result = TypeVar("Result")


def rolling_back(attempt: Callable[[int], Result], checkpoints: Checkpoints) -> Result:
  """Runs to the end, leaving out batches after which a value was not finite.

  Every checkpoint is good, since metrics are looked at before a save. What depends on nothing but
  checkpoint and data comes out the same when a run is killed and repeated.

  Args:
    attempt: `attempt(skip)` goes on from the newest checkpoint with the `skip` batches after it
      left out.
    checkpoints: of the run.

  Returns:
    What the attempt that reaches the end returns.

  Raises:
    NonFinite: after five times back: then it is not the data.
  """
  skip, before = 0, None
  for _ in range(MOST):
    try:
      return attempt(skip)
    except NonFinite as error:
      checkpoints.wait()
      newest = max(checkpoints.steps(), default=0)
      skip = error.step - newest + (skip if newest == before else 0)
      before = newest
      LOG.warning(
        "%s; config.on_nonfinite = 'roll_back': back to step %d, without the %d batches after it",
        str(error).partition(";")[0],
        newest,
        skip,
      )
  return attempt(skip)
