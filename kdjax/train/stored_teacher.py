"""A teacher that the job asks once, before its students: weights, then signals, then no more."""

from __future__ import annotations

from pathlib import Path

from kdjax.errors import KdjaxError
from kdjax.resolve import check_type, hint
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.config import Config, merge
from kdjax.train.pretrained import trains_teacher
from kdjax.train.stage import Stop

SIGNALS = "signals"


def is_stored(config: Config) -> bool:
  """Whether the job itself makes the cache that the students read."""
  spec = config["teacher"]
  return bool(spec) and spec["kind"] == "cached" and not spec["cache"]


def live_config(config: Config) -> Config:
  """The config with that teacher as a live one, as it is trained and asked."""
  return merge(config, {"teacher": {"kind": "frozen"}})


def store_options(config: Config) -> CacheOptions:
  """What `config.teacher.store` asks for, the rest as `launch.cache_teacher` has it.

  Raises:
    KdjaxError: a field that does not exist or of the wrong type.
  """
  given, known = config["teacher"]["store"], CacheOptions()
  for name, value in given.items():
    if name not in CacheOptions._fields:
      raise KdjaxError(
        f"config.teacher.store.{name} does not exist{hint(name, CacheOptions._fields)}"
      )
    check_type(value, type(getattr(known, name)), f"config.teacher.store.{name}")
  return CacheOptions(**given)


def store_teacher(config: Config, workdir: Path, *, stop: Stop = lambda: False) -> Config:
  """Asks the trained teacher about every training example, in each version of its augmentation.

  Goes on where an earlier start was killed; a finished cache is read as it is.

  Args:
    config: whose teacher `is_stored`; trained in WORKDIR/teacher unless it has a checkpoint.
    workdir: the cache is WORKDIR/signals.
    stop: asked before every batch.

  Returns:
    The config with checkpoint and cache filled in. Training reads the cache alone; evaluation asks
    the live teacher.
  """
  own = config
  if trains_teacher(live_config(config)):
    own = merge(own, {"teacher": {"checkpoint": str(workdir / "teacher")}})
  folder = workdir / SIGNALS
  cache_teacher(open_session(live_config(own), store_options(own)), folder, stop=stop)
  return merge(own, {"teacher": {"cache": str(folder)}})
