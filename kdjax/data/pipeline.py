"""Batches: without end and resumable for training, one padded pass for evaluation.

Training batch k is a pure function of (seed, k). Each process reads its own block of rows of that
batch, so the batch is the same however many processes share it, and a run may go on with another
number of them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from kdjax.data.augment import Augment, augment_rows, mixes, records_for
from kdjax.data.base import Source
from kdjax.data.text.mixture import Change, Mixture, assign, checked_weights
from kdjax.errors import KdjaxError

Batch = dict[str, Any]
_KEYS = {"image", "second_image", "label", "index", "mask", "corruption"}
_KEYS |= {"tokens", "segment_ids", "positions", "domain", "weight", "group_ids"}
POSITION = "global_next_index"
WEIGHTS = "weights"


class TrainingStream:
  """Endless training batches with a position; make it with `training_stream`.

  The position counts the records consumed by all processes together. It is the same on each of
  them and says nothing of batches that were read ahead.
  """

  def __init__(self, batches: _TrainingBatches, options: _Reading):
    self._batches, self._options = batches, options
    self._next = 0
    self._iterator: Any = None

  def __iter__(self) -> TrainingStream:
    return self

  def __next__(self) -> Batch:
    if self._iterator is None:
      start = dataclasses.replace(self._batches, start=self._next)
      self._iterator = self._options.iterate(start)
    batch = next(self._iterator)
    self._next += self._batches.batch_size
    return batch

  def set_weights(self, weights: Mapping[str, float]) -> None:
    """Changes the shares of the domains, from the next batch on.

    Every process must do so after the same batch. What was read ahead is dropped.

    Args:
      weights: domain to share, any scale; 0 pauses a domain, which later goes on where it was.

    Raises:
      KdjaxError: a source without shares, or weights that do not fit its domains.
    """
    mixture = self._batches.mixture
    if mixture is None:
      raise KdjaxError("these training data were made without weights; give config.data.weights")
    now = Change(self._next, checked_weights(weights, mixture.domains))
    before = tuple(change for change in self._batches.changes if change.start < now.start)
    if not before or before[-1].weights != now.weights:
      before += (now,)
    self._change(before)

  def get_state(self) -> dict[str, Any]:
    """The position after the last batch that was handed out; plain JSON.

    Where the weights of a mixture were changed, all of them with the rows they began at.
    """
    mixture, changes = self._batches.mixture, self._batches.changes
    if mixture is None or changes == (Change(0, mixture.weights),):
      return {POSITION: self._next}
    named = [[c.start, dict(zip(mixture.domains, c.weights, strict=True))] for c in changes]
    return {POSITION: self._next, WEIGHTS: named}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position; the number of processes and the batch size may have changed since."""
    position = state.get(POSITION) if isinstance(state, Mapping) else None
    if not isinstance(position, int) or position < 0:
      raise KdjaxError(
        f"{state!r} is no position in a data stream; {{{POSITION!r}: n}} is wanted. The checkpoint"
        " belongs to another kind of run"
      )
    changes = _read_changes(state.get(WEIGHTS), self._batches.mixture, position)
    self._change(changes)
    self._next = position

  def _change(self, changes: tuple[Change, ...]) -> None:
    self.close()
    self._batches = dataclasses.replace(self._batches, changes=changes)

  def close(self) -> None:
    """Stops reading ahead; the next batch starts it again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


class PairedStream:
  """Several streams in step; make it with `paired_stream`."""

  def __init__(self, streams: Mapping[str, TrainingStream]):
    self._streams = dict(streams)

  def __iter__(self) -> PairedStream:
    return self

  def __next__(self) -> Batch:
    batches = {name: next(stream) for name, stream in self._streams.items()}
    return batches.pop("train") | batches

  def set_weights(self, weights: Mapping[str, float]) -> None:
    """Changes the shares of the domains of the stream "train"; the others go on as they are.

    See `TrainingStream.set_weights`.
    """
    self._streams["train"].set_weights(weights)

  def get_state(self) -> dict[str, Any]:
    """The positions of all streams; plain JSON."""
    return {name: stream.get_state() for name, stream in self._streams.items()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to the positions of all streams."""
    if not isinstance(state, Mapping) or set(state) != set(self._streams):
      raise KdjaxError(
        f"{state!r} is no position in the streams {sorted(self._streams)}; the checkpoint"
        " belongs to another kind of run"
      )
    for name, stream in self._streams.items():
      stream.set_state(state[name])

  def close(self) -> None:
    """Stops reading ahead."""
    for stream in self._streams.values():
      stream.close()


def training_stream(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  shard_index: int = 0,
  shard_count: int = 1,
  augment: Augment | None = None,
  versions: int = 1,
  threads: int = 1,
  workers: int = 0,
) -> TrainingStream:
  """Shuffled batches without end, reshuffled each epoch.

  A batch may reach over the end of an epoch, and over several where the source is smaller than it;
  in each epoch every record comes exactly once. A source with a `mixture` gives each domain its
  share of the rows, and each domain has epochs of its own.

  Args:
    source: what to read.
    batch_size: rows of the global batch, all processes together.
    seed: of shuffling and augmentation, >= 0.
    shard_index: this process.
    shard_count: how many processes; divides the batch size.
    augment: changes each record; see `kdjax.data.augment`.
    versions: how many versions of each record the source holds, version v of record i at
      v N / versions + i; epoch e reads version e % versions.
    threads: that read ahead in this process; 0 reads when asked. More than one pays for files, not
      for arrays in memory.
    workers: processes that read ahead, for augmentations that keep a core busy; 0 for none. The
      source is copied to each. Needs parsed absl flags and an importable main module.

  Returns:
    A stream of dicts: image float32 [B, H, W, C], label int32 [B], index int32 [B], mask bool [B]
    (all True), where B is batch_size / shard_count. Rows of text have keys of their own; see
    `kdjax.data.PackedRows`.

  Raises:
    KdjaxError: an empty source, or a batch that does not divide.
  """
  _check_shares(batch_size, shard_index, shard_count)
  if not len(source):
    raise KdjaxError("the training data are empty (0 records); choose a split that holds records")
  if seed < 0:
    raise KdjaxError(f"the seed of the data is {seed}; it must be at least 0")
  mixture = getattr(source, "mixture", None)
  batches = _TrainingBatches(
    source,
    batch_size,
    seed,
    shard_index,
    shard_count,
    augment,
    versions,
    mixture,
    () if mixture is None else (Change(0, mixture.weights),),
  )
  return TrainingStream(batches, _Reading(threads, workers))


def paired_stream(streams: Mapping[str, TrainingStream]) -> PairedStream:
  """Reads several streams in step, as bilevel and semi-supervised programs want.

  Args:
    streams: by name, "train" among them; each with its own source, seed, size and augmentation.

  Returns:
    A stream of the batches of "train"; every other stream's batch is nested under its name.

  Raises:
    KdjaxError: no stream "train", or a name that a batch already has.
  """
  if "train" not in streams:
    raise KdjaxError(f"paired_stream got the streams {sorted(streams)}; one must be 'train'")
  if taken := _KEYS & set(streams):
    raise KdjaxError(f"the stream name(s) {sorted(taken)} are keys of a batch; choose others")
  return PairedStream(streams)


def evaluation_batches(
  source: Source, *, batch_size: int, shard_index: int = 0, shard_count: int = 1, threads: int = 1
) -> Iterator[Batch]:
  """One pass in order, in batches of equal shape; every process gets as many of them.

  Args:
    source: what to read.
    batch_size: rows of the global batch; may exceed the number of records.
    shard_index: this process.
    shard_count: how many processes; divides the batch size.
    threads: that read ahead; 0 reads when asked.

  Returns:
    An iterator of dicts as `training_stream` gives; the last batch is filled up with zeros, index
    -1 and mask False.

  Raises:
    KdjaxError: an empty source, or a batch that does not divide.
  """
  _check_shares(batch_size, shard_index, shard_count)
  if not len(source):
    raise KdjaxError("the evaluation data are empty; choose a split that holds records")
  batches = _EvaluationBatches(source, batch_size, shard_index, shard_count)
  return _closing(_Reading(threads, 0).iterate(batches))


# Both kinds of batches are Grain sources: random access, batch by batch. One read of many records
# is twice as fast as Grain's batching of single ones.


@dataclasses.dataclass(frozen=True)
class _TrainingBatches:
  source: Source
  batch_size: int
  seed: int
  shard_index: int
  shard_count: int
  augment: Augment | None
  versions: int = 1
  mixture: Mixture | None = None
  changes: tuple[Change, ...] = ()  # of the mixture's weights, the first at row 0
  start: int = 0  # records consumed before batch 0

  def __len__(self) -> int:
    return (sys.maxsize - self.start) // self.batch_size

  def __getitem__(self, k: int) -> Batch:
    first = self.start + k * self.batch_size
    rows = own = _own_rows(first, self.batch_size, self.shard_index, self.shard_count)
    if mixes(self.augment):
      own = np.append(rows, rows[-1] + 1)
    records, epochs = self._ordered(own) if self.mixture is None else self._mixed(own)
    if self.augment is None:
      batch = self.source.read(records)
    else:
      stored = records_for(self.source, records, self.augment)
      batch = augment_rows(stored, self.augment, seed=self.seed, epochs=epochs)
    # Rows of several positions say themselves which of these count.
    return {"mask": np.ones(len(rows), bool)} | batch

  def _ordered(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Records and epochs of global rows."""
    size = len(self.source) // self.versions
    epochs, places = np.divmod(rows, size)
    records = _shuffled(size, self.seed, epochs, places)
    return records + size * (epochs % self.versions), epochs

  def _mixed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for a mixture, whose domains are shuffled in epochs of their own."""
    domains, numbers = assign(self.changes, int(rows[0]), int(rows[-1]) + 1)
    sizes = np.array(self.mixture.rows)
    epochs, places = np.divmod(numbers, sizes[domains])
    records = np.empty(len(rows), np.int64)
    for domain in np.unique(domains):
      own, size = domains == domain, int(sizes[domain])
      records[own] = sizes[:domain].sum() + _shuffled(size, self.seed, epochs[own], places[own])
    return records, epochs


@dataclasses.dataclass(frozen=True)
class _EvaluationBatches:
  source: Source
  batch_size: int
  shard_index: int
  shard_count: int

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, k: int) -> Batch:
    rows = _own_rows(k * self.batch_size, self.batch_size, self.shard_index, self.shard_count)
    valid = rows < len(self.source)
    # Rows past the end read record 0 and are blanked, so that shapes need no special case.
    batch = self.source.read(np.where(valid, rows, 0))
    for key, values in batch.items():
      mask = valid.reshape((-1,) + (1,) * (values.ndim - 1))
      batch[key] = np.where(mask, values, np.zeros((), values.dtype))
    batch["index"] = np.where(valid, batch["index"], np.int32(-1))
    return {"mask": valid} | batch


@dataclasses.dataclass(frozen=True)
class _Reading:
  threads: int
  workers: int

  def iterate(self, batches: Any) -> Any:
    dataset = grain.MapDataset.source(batches).to_iter_dataset(
      grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=4 * self.threads)
    )
    if self.workers:
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=4)
      )
    return iter(dataset)


def _own_rows(first: int, batch_size: int, shard_index: int, shard_count: int) -> np.ndarray:
  own = batch_size // shard_count
  return np.arange(first + shard_index * own, first + (shard_index + 1) * own)


# Drawn whole: Grain's index_shuffle, which needs no memory, is slow for sources of less than some
# ten thousand records. Four bytes a record; a few streams at the turn of an epoch find theirs kept.
@functools.lru_cache(maxsize=8)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
  order = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
  np.random.default_rng((seed, epoch)).shuffle(order)
  order.setflags(write=False)
  return order


def _shuffled(size: int, seed: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
  """What lies at places of the shuffled orders of epochs, int64."""
  records = np.empty(len(places), np.int64)
  for epoch in np.unique(epochs):
    own = epochs == epoch
    records[own] = _epoch_order(size, seed, int(epoch))[places[own]]
  return records


def _read_changes(given: Any, mixture: Mixture | None, position: int) -> tuple[Change, ...]:
  """The weights of a saved position, checked against the source."""
  if mixture is None and given is None:
    return ()
  if given is None:
    return (Change(0, mixture.weights),)
  starts = [entry[0] for entry in given] if _is_pairs(given) else []
  fits = starts[:1] == [0] and all(type(start) is int for start in starts)
  if mixture is None or not fits or sorted(set(starts)) != starts or starts[-1] > position:
    raise KdjaxError(
      f"{given!r} are no weights of this run's data stream at row {position}; the checkpoint"
      " belongs to another kind of run"
    )
  return tuple(Change(start, checked_weights(own, mixture.domains)) for start, own in given)


def _is_pairs(given: Any) -> bool:
  return isinstance(given, list) and all(
    isinstance(entry, list | tuple) and len(entry) == 2 for entry in given
  )


def _closing(iterator: Any) -> Iterator[Batch]:
  try:
    yield from iterator
  finally:
    iterator.close()


def _check_shares(batch_size: int, shard_index: int, shard_count: int) -> None:
  if batch_size < 1 or batch_size % shard_count:
    raise KdjaxError(
      f"config.batch_size = {batch_size} must be a positive multiple of the number of processes"
      f" that read data, {shard_count}"
    )
  if not 0 <= shard_index < shard_count:
    raise KdjaxError(f"shard_index = {shard_index} must lie in 0 .. {shard_count - 1}")
