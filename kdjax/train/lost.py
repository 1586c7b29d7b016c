"""What jax says when another process of a job is gone."""

from __future__ import annotations

import re

import jax

# The libraries that carry arrays between processes, and what those of the coordinator say.
_CARRIERS = re.compile("gloo|nccl|rccl", re.IGNORECASE)
_CONNECTION = re.compile("connection|peer|unavailable|deadline_exceeded", re.IGNORECASE)


def is_lost(error: BaseException) -> bool:
  """Whether an error comes from a lost connection to another process of this job.

  Orbax hands on what it meets in a save as a ValueError with jax's text.
  """
  if jax.process_count() == 1:
    return False
  told = str(error)
  by_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return bool(_CARRIERS.search(told) or (by_jax and _CONNECTION.search(told)))
