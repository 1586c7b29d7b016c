"""A data set whose test images are followed by damaged copies of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.base import DataSet, Example, Source, stack
from kdjax.data.corruptions import FOR_TEST, KINDS, SEVERITIES, check_corruptions, corrupt
from kdjax.errors import KdjaxError, within
from kdjax.resolve import resolve


def corrupted(
  *,
  images: str | Mapping[str, Any],
  kinds: Sequence[str] = FOR_TEST,
  severities: Sequence[int] = SEVERITIES,
  copied: int | None = None,
  seed_of_noise: int = 0,
) -> DataSet:
  """A data set that is judged on clean test images and on corrupted copies of them.

  Training images stay as they are; see `kdjax.data.augment.corrupt` to learn from damaged ones.
  Copies are made when they are read, the same at every reading.

  Args:
    images: the data set of `kdjax.data` that has the images, such as "fashion_mnist", or that with
      its arguments, as {"name": "array_record_images", "path": FOLDER}.
    kinds: of damage, from `kdjax.data.corruptions.KINDS`; the default leaves out the two that
      ImageNet-C sets apart for training.
    severities: from 1 to 5.
    copied: of how many test images there are copies, which lie evenly over all; None takes all.
    seed_of_noise: what the noise is drawn from.

  Returns:
    The data set with `corruptions`; its test records hold `corruption`, int32: 0 where clean, else
    1 + the place among `kinds`.

  Raises:
    KdjaxError: unknown images, kinds or severities, a number of copies out of range.
  """
  from kdjax import data  # it names this file's function, too

  check_corruptions("config.data", kinds, severities)
  spec = {"name": images} if isinstance(images, str) else dict(images)
  own = {name: value for name, value in spec.items() if name != "name"}
  with within("config.data.images"):
    whole: DataSet = resolve(data, spec.get("name"), own, field="config.data.images.name")()
  count = len(whole.test) if copied is None else copied
  if not 1 <= count <= len(whole.test):
    raise KdjaxError(
      f"config.data.copied = {count} must lie in 1 .. {len(whole.test)}, the test images of"
      f" {whole.name}"
    )
  chosen = np.linspace(0, len(whole.test) - 1, count).round().astype(np.int64)
  pairs = tuple((kind, severity) for kind in kinds for severity in severities)
  test = _Copies(whole.test, chosen, tuple(kinds), pairs, seed_of_noise)
  return whole._replace(test=test, corruptions=tuple(kinds))


@dataclasses.dataclass(frozen=True)
class _Copies:
  """A source followed by copies of chosen records, damaged one way after the other."""

  source: Source
  chosen: np.ndarray
  kinds: tuple[str, ...]
  pairs: tuple[tuple[str, int], ...]
  seed: int

  @functools.cached_property
  def labels(self) -> np.ndarray:
    copies = np.tile(self.source.labels[self.chosen], len(self.pairs))
    return np.concatenate([self.source.labels, copies])

  def __len__(self) -> int:
    return len(self.source) + len(self.chosen) * len(self.pairs)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    clean = len(self.source)
    pair, place = np.divmod(positions - clean, len(self.chosen))
    own = np.where(positions < clean, positions, self.chosen[place])
    batch = self.source.read(own)
    rows = [
      {key: values[i] for key, values in batch.items()} | self._damage(batch["image"][i], own[i], p)
      for i, p in enumerate(np.where(positions < clean, -1, pair))
    ]
    return stack(rows)

  def _damage(self, image: np.ndarray, record: int, pair: int) -> Example:
    if pair < 0:
      return {"corruption": np.int32(0)}
    kind, severity = self.pairs[pair]
    # From what is damaged and how alone, so that other kinds beside it change nothing.
    rng = np.random.default_rng((self.seed, KINDS.index(kind), severity, int(record)))
    damaged = corrupt(image, kind, severity, rng)
    return {"image": damaged, "corruption": np.int32(1 + self.kinds.index(kind))}
