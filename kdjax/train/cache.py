"""Asks a teacher once: its signals for every training example, on disk."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from kdjax.losses.signals import top_k_signal
from kdjax.models.base import Batch
from kdjax.objectives.chunks import map_chunks
from kdjax.outputs import Outputs
from kdjax.signals import Cache, CacheWriter, Manifest, Spec, codec
from kdjax.signals.draws import draw
from kdjax.signals.records import Record
from kdjax.teachers import Teacher
from kdjax.train.cache_session import HIDDEN, Session
from kdjax.train.loop import Interrupted

LOG = logging.getLogger("kdjax")
CHUNK = 64  # positions of which logits over the whole vocabulary exist at a time


def cache_teacher(
  session: Session, folder: Path, *, stop: Callable[[], bool] = lambda: False
) -> Manifest:
  """Stores the signals of a teacher for all rows of a session.

  Every example is seen once, in order. Goes on where an earlier start was killed; a finished cache
  is left as it is.

  Args:
    session: from `open_session`.
    folder: where to.
    stop: asked before every batch; True ends with Interrupted, finished shards stay.

  Returns:
    The manifest.

  Raises:
    KdjaxError: another cache in the folder, a full disk.
    Interrupted: stopped.
  """
  index, count = session.share
  writes = _first_of_share(index)
  writer = CacheWriter(folder, session.spec, process=index, processes=count)
  _meet("claimed")
  if not writer.finished:
    started = time.monotonic()
    done = _write_shards(session, writer, writes=writes, stop=stop)
    if session.spec.kind == "hidden":
      head = _head(session)
      if jax.process_index() == 0:
        writer.write_head(head)
    _meet("written")
    if jax.process_index() == 0:
      writer.finish()
    _meet("finished")
    seconds = time.monotonic() - started
    LOG.info("%d positions in %.1f s, %.0f a second", done, seconds, done / max(seconds, 1e-9))
  return Cache(folder).manifest


def signals_of(session: Session) -> Callable[[Any, Batch, jax.Array], dict[str, jax.Array]]:
  """The function `(frozen, batch, words) -> arrays` that computes what is stored of a batch.

  Returns:
    "ids" int32 [B, T, N] (sampled); "ids" and "log_probs" [B, T, K] (top_k); "hidden" [B, T, D].
    No array over positions and the whole vocabulary exists where the model has hidden and head.
  """
  spec = session.spec

  def sampled(logits, words):
    temperature, number = spec.temperature, spec.support
    return {"ids": draw(words, logits, num_samples=number, temperature=temperature)}

  def top_k(logits, words):
    signal = top_k_signal(logits, k=spec.support, temperature=spec.temperature)
    return {"ids": signal.ids, "log_probs": signal.log_probs}

  def compute(frozen, batch, words):
    outputs = session.teacher.apply(frozen, (), batch, taps=taps_of(session.teacher, spec.kind))
    if spec.kind == "hidden":
      return {"hidden": outputs.hidden.astype(spec.dtype)}
    return over_logits({"sampled": sampled, "top_k": top_k}[spec.kind], outputs, words)

  return compute


def taps_of(teacher: Teacher, kind: str) -> frozenset[str]:
  """What the teacher is asked for."""
  return HIDDEN if kind == "hidden" or teacher.taps >= HIDDEN else frozenset({"logits"})


def over_logits(fn: Callable[..., Any], outputs: Outputs, *inputs: Any) -> Any:
  """`fn(logits, *inputs)` position by position; a chunk at a time where there is a time axis."""
  if outputs.logits is not None:
    return fn(outputs.logits, *inputs)
  hidden, logits = outputs.hidden, outputs.head.logits
  if hidden.ndim == 2:
    return fn(logits(hidden), *inputs)
  return map_chunks(
    lambda part: fn(logits(part[0]), *part[1:]), (hidden, *inputs), hidden.shape[:2], CHUNK
  )


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of a global array."""
  parts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])


def encode(spec: Spec, arrays: dict[str, np.ndarray]) -> tuple[bytes, int]:
  """(payload, most classes of any position) of one example's arrays [T, ...]."""
  if spec.kind == "hidden":
    return codec.encode_hidden(arrays["hidden"], dtype=spec.dtype), 0
  if spec.kind == "top_k":
    return codec.encode_top_k(arrays["ids"], arrays["log_probs"], vocab=spec.vocab), spec.support
  ids = np.sort(arrays["ids"], axis=1)
  slots = int((np.diff(ids, axis=1) > 0).sum(axis=1).max()) + 1
  return codec.encode_sampled(ids, vocab=spec.vocab), slots


def _write_shards(session: Session, writer: CacheWriter, *, writes: bool, stop) -> int:
  """Writes this process's shards; returns the number of positions stored."""
  compute = jax.jit(signals_of(session), out_shardings=session.sharding)
  own = session.batch_size // session.share[1]
  missing = writer.missing()
  todo = [list(writer.rows_of(number)) for number in missing]
  left = sum(-(-len(rows) // own) for rows in todo)
  # All processes compute every batch together, also those who have less to write.
  idle = _most(left) - left
  positions = 0
  slow = not sys.stderr.isatty()  # a log file sees a line now and then
  bar = tqdm(
    total=sum(map(len, todo)),
    desc="cache",
    unit="row",
    mininterval=10 if slow else 0.2,
    ascii=slow or None,
    disable=jax.process_index() != 0,
  )

  def launch(rows):
    if stop():
      raise Interrupted(f"kept the finished shards in {writer.folder}")
    return compute(session.frozen, *session.place(rows))

  def stored(rows, arrays) -> Iterator[Record]:
    nonlocal positions
    arrays = {name: local_rows(array) for name, array in arrays.items()}
    for place_of, row in enumerate(rows):
      for key, start, stop_at in session.source.rows.spans(row):
        part = {
          name: values[place_of][None]
          if session.source.length is None
          else values[place_of, start:stop_at]
          for name, values in arrays.items()
        }
        payload, slots = encode(session.spec, part)
        positions += stop_at - start
        yield Record(key, payload, stop_at - start, slots)
    bar.update(len(rows))

  def records(rows) -> Iterator[Record]:
    # The next batch is computed while this one is packed.
    ahead = None
    for first in range(0, len(rows), own):
      part = rows[first : first + own]
      now = part, launch(part)
      if ahead is not None:
        yield from stored(*ahead)
      ahead = now
    yield from stored(*ahead)

  with bar:
    for number, rows in zip(missing, todo, strict=True):
      if writes:
        writer.write(number, records(rows))
      else:
        for _ in records(rows):
          pass
    for _ in range(idle):
      jax.block_until_ready(launch([0]))
  return positions


def _head(session: Session) -> dict[str, np.ndarray]:
  """The teacher's head as arrays by name, whole on every process."""
  whole = NamedSharding(session.sharding.mesh, PartitionSpec())
  batch, _ = session.place([0])

  @functools.partial(jax.jit, out_shardings=whole)
  def read(frozen, batch):
    return session.teacher.apply(frozen, (), batch, taps=frozenset({"head"})).head

  head = read(session.frozen, batch)
  arrays = {"embedding" if head.tied else "kernel": head.weight, "bias": head.bias}
  return {name: np.asarray(array) for name, array in arrays.items() if array is not None}


def _most(number: int) -> int:
  """The largest of all processes' numbers."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(jnp.int32(number)).max())


def _first_of_share(index: int) -> bool:
  """Whether no earlier process computes the same rows as this one."""
  if jax.process_count() == 1:
    return True
  shares = multihost_utils.process_allgather(jnp.int32(index)).tolist()
  return shares.index(index) == jax.process_index()


def _meet(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"cache {name}")
