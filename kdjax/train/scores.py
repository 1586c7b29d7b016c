"""The log-probability that a model gives to every row of text: once, shard by shard, on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from kdjax.data.text import PackedRows
from kdjax.errors import KdjaxError, writing
from kdjax.losses import cross_entropy
from kdjax.objectives.chunks import sum_chunks
from kdjax.programs.evaluators import CHUNK, HEADED
from kdjax.teachers import Teacher
from kdjax.train.checkpoint import fingerprint
from kdjax.train.loop import Interrupted
from kdjax.train.memory import jit_on
from kdjax.train.mesh import TEACHER_RULES, Rules, batch_sharding, place, shardings
from kdjax.train.streams import evaluation_passes

LOG = logging.getLogger("kdjax")
MANIFEST = "manifest.json"
SHARD = 16_384  # rows in a file; what a kill can cost


def score_rows(
  teacher: Teacher,
  rows: PackedRows,
  folder: Path,
  mesh: Mesh,
  *,
  batch_size: int,
  rules: Rules = TEACHER_RULES,
  shard: int = SHARD,
  stop: Callable[[], bool] = lambda: False,
) -> Float[np.ndarray, "rows two"]:
  """Sum of log-probabilities, in nats, and number of the predicted tokens of each row.

  Goes on where an earlier start was killed; what is there is read. Padding is in no file.

  Args:
    teacher: any language model, with hidden states and head.
    rows: N of them, in its tokens.
    folder: of the files, on a disk that all processes share.
    mesh: where to run it.
    batch_size: rows at a time; the scores do not depend on it.
    rules: where the model's weights lie.
    shard: rows in a file.
    stop: asked before each file; True ends with Interrupted.

  Returns:
    float64 [N, 2], the same on every process.

  Raises:
    KdjaxError: scores of another model or other rows in the folder, a damaged file, a full disk.
    Interrupted: stopped; finished files stay.
  """
  _claim(folder, {"model": fingerprint(teacher.frozen), "rows": identity(rows), "shard": shard})
  paths = [folder / f"scores-{number:05d}.npy" for number in range(-(-len(rows) // shard))]
  frozen = jax.device_put(teacher.frozen, shardings(teacher.frozen, teacher.axes, rules, mesh))
  sharding = batch_sharding(mesh)

  def scored(frozen, batch):
    outputs = teacher.apply(frozen, (), batch, taps=HEADED)
    where = batch["mask"] & (batch["label"] >= 0)

    def chunk(part):
      logits = outputs.head.logits(part["hidden"])
      nll = cross_entropy(logits, jnp.maximum(part["label"], 0), where=part["where"])
      return -nll.sum(-1), part["where"].sum(-1, dtype=jnp.float32)

    parts = {"hidden": outputs.hidden, "label": batch["label"], "where": where}
    return jnp.stack(sum_chunks(chunk, parts, where.shape, CHUNK), axis=-1)

  score = jit_on(mesh, scored, out_shardings=NamedSharding(mesh, PartitionSpec()))
  missing = [number for number, path in enumerate(paths) if not path.is_file()]
  _meet("listed")
  for number in missing:
    if stop():
      raise Interrupted(f"kept the finished files in {folder}")
    own = np.arange(number * shard, min((number + 1) * shard, len(rows)))
    batches = evaluation_passes(rows.take(own), batch_size, mesh)()
    found = [np.asarray(score(frozen, place(batch, sharding)), np.float64) for batch in batches]
    if jax.process_index() == 0:
      _write(paths[number], np.concatenate(found)[: len(own)])
    LOG.info("%s: %d of %d rows are scored", folder.name, own[-1] + 1, len(rows))
  _meet("scored")
  return np.concatenate(
    [_read(path, min(shard, len(rows) - n * shard)) for n, path in enumerate(paths)]
  )


def identity(rows: PackedRows) -> str:
  """A hash of which tokens the rows hold: of their documents, their tokenizer and their plan."""
  found = hashlib.blake2b(f"{rows.tokenizer_sha256} {rows.sequence_length}".encode())
  for array in (rows.plan.first, rows.plan.domain, *rows.plan.examples):
    found.update(np.ascontiguousarray(array).tobytes())
  for text in rows.texts:
    found.update(np.ascontiguousarray(text.keys).tobytes())
  return found.hexdigest()[:32]


def _claim(folder: Path, wanted: Mapping[str, Any]) -> None:
  path = folder / MANIFEST
  if path.is_file():
    try:
      saved = json.loads(path.read_text())
    except json.JSONDecodeError:
      saved = {}
    if saved != wanted:
      raise KdjaxError(
        f"{folder} holds scores of another model or of other rows; remove the folder, or use"
        " another --workdir"
      )
  elif jax.process_index() == 0:
    with writing(path):
      folder.mkdir(parents=True, exist_ok=True)
      _replace(path, json.dumps(dict(wanted)).encode())
  _meet("claimed")


def _write(path: Path, values: np.ndarray) -> None:
  with writing(path):
    part = path.with_suffix(".part")
    with part.open("wb") as file:
      np.save(file, values)
    os.replace(part, path)


def _replace(path: Path, content: bytes) -> None:
  part = path.with_suffix(".part")
  part.write_bytes(content)
  os.replace(part, path)


def _read(path: Path, count: int) -> np.ndarray:
  try:
    values = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError):
    values = None
  if values is None or values.shape != (count, 2) or not np.isfinite(values).all():
    raise KdjaxError(
      f"{path} is damaged: {count} finite scores wanted; remove it and run the same command again"
    )
  return values


def _meet(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"scores {name}")
