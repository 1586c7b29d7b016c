"""Checkpoints: Orbax behind a thin layer that knows one state, falls back and says why."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from kdjax.errors import KdjaxError
from kdjax.train.lost import is_lost
from kdjax.train.steady import steady_limits

PyTree = Any
LOG = logging.getLogger("kdjax")
META = "meta"
SUM = "sha256"  # of all else in it
REST = "training"  # the item of all fields but these:
EXPORTED = ("params", "model_state", "ema")
ASIDE = "damaged"
FOLDER = "checkpoints"


class Restored(NamedTuple):
  """A checkpoint read back: its items on their mesh, and the JSON saved beside them."""

  step: int
  items: dict[str, PyTree]
  meta: Mapping[str, Any]


def fingerprint(tree: PyTree) -> str:
  """SHA-256 over the paths, types, shapes and bytes of a pytree of arrays, read to this host."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      leaf = jax.experimental.multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def shapes_of(tree: PyTree) -> dict[str, str]:
  """Path to "dtype[shape]" of every leaf: what an architecture looks like on disk."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
  """A uint32 per array over its bits: integer sums, so that no sharding changes it.

  Bits weigh an odd number each, so that one flipped bit always shows.
  """

  def one(x):
    if x.dtype == jnp.bool_:
      words = x.astype(jnp.uint32)
    else:
      words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
      words = words.astype(jnp.uint32)
    if x.ndim == 0:
      return words
    place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, x.ndim - 1)
    return jnp.sum(words * (jnp.uint32(2) * place + jnp.uint32(1)), dtype=jnp.uint32)

  return [one(leaf) for leaf in leaves]


def checksums_of(tree: PyTree) -> dict[str, int]:
  """Path to checksum of every leaf; the same on any mesh."""
  named = jax.tree_util.tree_leaves_with_path(tree)
  sums = jax.device_get(_checksums([leaf for _, leaf in named]))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
    for (path, _), value in zip(named, sums, strict=True)
  }


def writable(folder: Path) -> None:
  """Makes the folder; raises KdjaxError naming it when it cannot be written to."""
  probe = folder / f".write-test-{os.getpid()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"")
    probe.unlink()
  except OSError as error:
    raise KdjaxError(
      f"cannot write to {folder}: {error.strerror or error}; choose another --workdir"
    ) from None


class Checkpoints:
  """The checkpoints of one run: saved in the background, restored onto any mesh.

  Weights are Orbax items of their own, which can be read without the rest; strings and numbers
  that describe the run lie beside them as JSON. The best checkpoints by a metric and the newest
  ones are kept.
  """

  def __init__(
    self,
    folder: Path,
    *,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str = "accuracy",
    higher_is_better: bool = True,
    timeout_seconds: int = 600,
    read_only: bool = False,
  ):
    self.folder = Path(folder).absolute()
    if not read_only:
      writable(self.folder)
    keep = [policies.LatestN(max(keep_last, 1))]
    if keep_best:
      best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[best_metric],
        reverse=not higher_is_better,
        n=keep_best,
        keep_checkpoints_without_metrics=False,
      )
      keep.append(best)
    self._metric, self._read_only = best_metric, read_only
    steady_limits()
    self._saving: int | None = None  # the last step that was handed over
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        async_options=ocp.AsyncOptions(timeout_secs=timeout_seconds),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
      ),
    )
    # With each save Orbax would ask jax for a common stop by the number of its step. The loop asks
    # by a count of its own, which would go backwards then, and a stop in between be passed by.
    self._manager.reached_preemption = lambda step: False

  def steps(self) -> list[int]:
    """Steps that have a finished checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(
    self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None
  ) -> None:
    """Saves in the background; returns once the state is copied and may be donated."""
    items = {name: ocp.args.StandardSave(value) for name, value in _group(state._asdict()).items()}
    whole = state._asdict()
    meta = dict(meta) | {"shapes": shapes_of(whole), "checksums": checksums_of(whole)}
    meta |= {SUM: _digest(meta)}
    metric = {k: float(v) for k, v in (metrics or {}).items() if k == self._metric}
    self.wait()
    self._saving = step
    with self._errors():
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(**{META: ocp.args.JsonSave(meta)}, **items),
        metrics=metric or None,
      )
      if not saved:
        raise KdjaxError(
          f"the checkpoint of step {step} was not saved to {self.folder}: a checkpoint of that"
          f" step or a later one is there already (steps {self.steps()})"
        )

  def wait(self) -> None:
    """Blocks until the last save is on disk."""
    with self._errors():
      self._manager.wait_until_finished()

  def check(self) -> None:
    """Raises KdjaxError when a save in the background has failed."""
    with self._errors():
      self._manager.check_for_errors()

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def restore(
    self,
    shapes: Mapping[str, PyTree],
    shardings: Mapping[str, PyTree],
    *,
    matches: Callable[[Mapping[str, Any]], None] = lambda meta: None,
  ) -> Restored | None:
    """The newest checkpoint that can be read, on the given shardings; None without any.

    Args:
      shapes: the wanted items, fields of the state, with the shape and dtype of every leaf; some
        items or all.
      shardings: a `NamedSharding` per leaf; need not be those it was saved with.
      matches: `matches(meta)` raises KdjaxError when the checkpoint belongs to another run.

    Returns:
      The checkpoint. Damaged ones that are newer are moved aside, and a warning names them.

    Raises:
      KdjaxError: a checkpoint of another architecture, or no readable one among those there.
    """
    target = {
      name: jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes[name],
        shardings[name],
      )
      for name in shapes
    }
    groups = _group(target)
    args = {name: ocp.args.StandardRestore(value) for name, value in groups.items()}
    failed: dict[int, str] = {}
    for step in reversed(self.steps()):
      reason, meta, fields = "", {}, {}
      try:
        meta = self._read(step, {META: ocp.args.JsonRestore()})[META]
        _check_meta(meta)
        matches(meta)
        saved = {k: v for k, v in meta["shapes"].items() if k.partition("/")[0] in target}
        check_shapes(saved, shapes_of(target), self.folder / str(step))
        found = self._read(step, args)
        fields = {name: found[name] for name in groups if name != REST} | found.get(REST, {})
      except KdjaxError:
        raise
      except Exception as error:  # Orbax, tensorstore and JSON each raise classes of their own
        reason = f"{type(error).__name__}: {_first_line(error)}"
      # A process reads its own part alone: what is damaged may be another's.
      if not _by_all(not reason):
        failed[step] = reason or "another process cannot read its part"
        continue
      if wrong := _wrong_sums(meta["checksums"], checksums_of(fields)):
        failed[step] = f"the bits of {', '.join(wrong[:3])} are not those that were saved"
        continue
      self._set_aside(failed)
      return Restored(step, {name: fields.get(name, target[name]) for name in target}, meta)
    if failed:
      raise KdjaxError(
        f"no checkpoint in {self.folder} can be read ({failed}). Mend the disk, or delete the"
        " folder to start again"
      )
    return None

  def _read(self, step: int, args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Items of a checkpoint; of their arrays this process's part."""
    items = ocp.args.Composite(**args)
    if jax.process_count() == 1:
      return self._manager.restore(step, args=items)
    # The manager waits for all processes after each item: for ever, where one could not read its.
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    handler = ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
      return checkpointer.restore(self.folder / str(step), args=items)

  def read_meta(self) -> dict[str, Any]:
    """The JSON of the newest checkpoint in which it can be read; {} without any."""
    for step in reversed(self.steps()):
      with contextlib.suppress(OSError, ValueError, KeyError):
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)[META]
    return {}

  def _set_aside(self, failed: Mapping[int, str]) -> None:
    # Only once an older one has been read: a fault of this host must not cost good checkpoints.
    for step, reason in failed.items():
      aside = self.folder / f"{ASIDE}-{step}"
      LOG.warning(
        "checkpoint %d in %s is damaged (%s); using the one before", step, self.folder, reason
      )
      if jax.process_index() == 0 and not self._read_only:
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)
    if failed and not self._read_only:
      _by_all(True)  # none looks before they are moved
      self._manager.reload()

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except KdjaxError:
      raise
    except Exception as error:  # a save in the background may raise anything
      if is_lost(error):  # which is no matter of the disk
        raise
      raise KdjaxError(
        f"could not save the checkpoint of step {self._saving} to {self.folder}:"
        f" {type(error).__name__}: {_first_line(error)}. Free space or mend the disk and run the"
        f" same command again; the checkpoints of steps {self._on_disk()} are usable"
      ) from error

  def _on_disk(self) -> list[int]:
    return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())


def _group(fields: Mapping[str, PyTree]) -> dict[str, PyTree]:
  """Fields as Orbax items: what is exported alone, the rest together, nothing without arrays."""
  full = {name: value for name, value in fields.items() if jax.tree.leaves(value)}
  rest = {name: full.pop(name) for name in list(full) if name not in EXPORTED}
  return full | ({REST: rest} if rest else {})


def _wrong_sums(saved: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
  # Files carry no checksum of their own: a flipped bit in one can be read without an error.
  return sorted(name for name in found if found[name] != saved[name])


def _by_all(done: bool) -> bool:
  """Whether every process of the job says so."""
  if jax.process_count() == 1:
    return done
  return bool(np.all(multihost_utils.process_allgather(np.array(done))))


def _digest(meta: Mapping[str, Any]) -> str:
  as_read = json.loads(json.dumps({name: value for name, value in meta.items() if name != SUM}))
  return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _check_meta(meta: Mapping[str, Any]) -> None:
  # One flipped bit makes another number of a digit, such as a position in the data.
  if meta.get(SUM, _digest(meta)) != _digest(meta):
    raise ValueError(f"the {META} file is not what was saved")


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [""])[0][:300]


def check_shapes(saved: Mapping[str, str], wanted: Mapping[str, str], where: Path) -> None:
  """Raises KdjaxError listing the first leaves in which two architectures differ."""
  differing = [
    f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
    for name in sorted(set(saved) | set(wanted))
    if saved.get(name) != wanted.get(name)
  ]
  if differing:
    more = f" (and {len(differing) - 5} more)" if len(differing) > 5 else ""
    raise KdjaxError(
      f"the checkpoint {where} is of another architecture: {'; '.join(differing[:5])}{more}."
      " Use the config it was trained with, or another --workdir"
    )
