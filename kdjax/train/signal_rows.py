"""The rows of a config's training data as a cache of signals sees them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.data.augment import Augment, augment_rows, mixes, records_for
from kdjax.data.base import Source
from kdjax.data.text.paired import PairedRows
from kdjax.errors import KdjaxError, within
from kdjax.signals import Cache, CachedRows, ImageRows
from kdjax.train.config import Config


class SignalRows(NamedTuple):
  """Training data whose rows have spans.

  Attributes:
    rows: the source.
    length: positions of a row; None for images.
    data: what records depend on, see `kdjax.signals.Spec.data`.
    tokenizer: fingerprint; None for images.
    versions: of each record.
  """

  rows: Any
  length: int | None
  data: Mapping[str, Any]
  tokenizer: str | None
  versions: int


def signal_rows(
  config: Config, train: Source, augment: Augment | None, *, seed: int, versions: int = 1
) -> SignalRows:
  """The rows of a config's training data.

  Args:
    config: its `data.augment`, which `augment` was made of.
    train: the source.
    augment: None where images are not augmented.
    seed: of the augmentation.
    versions: of each augmented image.

  Raises:
    KdjaxError: several versions of what is not augmented.
  """
  if versions < 1 or (versions > 1 and augment is None):
    raise KdjaxError(
      f"--versions is {versions}; it must be at least 1, and 1 where config.data.augment is empty"
    )
  if isinstance(train, PairedRows):
    raise KdjaxError(
      "signals cannot be cached with config.data.teacher_tokenizer, since they belong to the"
      " teacher's tokens; leave it out, or use a live teacher"
    )
  if hasattr(train, "spans"):
    length = train.sequence_length
    return SignalRows(train, length, {"sequence_length": length}, train.tokenizer_sha256, 1)
  if mixes(augment):
    raise KdjaxError(
      "signals cannot be cached with mixup in config.data.augment: mixtures do not come again;"
      " leave it out, or use a live teacher"
    )
  if augment is None:
    return SignalRows(ImageRows(train), None, {"augment": []}, None, 1)
  change = functools.partial(_augmented, augment=augment, seed=seed)
  records = functools.partial(records_for, augment=augment)
  specs = json.loads(json.dumps(config["data"]["augment"]))
  told = {"augment": specs, "augment_seed": seed, "versions": versions}
  return SignalRows(
    ImageRows(train, change, records, versions=versions), None, told, None, versions
  )


def cached_rows(config: Config, train: Source, augment: Augment | None) -> SignalRows:
  """The same rows with the signals of `config.teacher.cache`, in as many versions as it holds.

  Raises:
    KdjaxError: no readable cache, or one of other data.
  """
  with within("config.teacher.cache"):
    cache = Cache(config["teacher"]["cache"])
    saved = cache.manifest.spec.data
    seed = saved.get("augment_seed", 0)
    versions = 1 if augment is None else saved.get("versions", 1)
    own = signal_rows(config, train, augment, seed=seed, versions=versions)
    rows = CachedRows(own.rows, cache, length=own.length, data=own.data, tokenizer=own.tokenizer)
  return own._replace(rows=rows)


def _augmented(rows, versions, *, augment, seed: int):
  return augment_rows(rows, augment, seed=seed, epochs=versions)
