"""Texts that a model writes once, kept on the disk as rows to learn from."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data.text import PackedRows, TextData
from kdjax.errors import KdjaxError, writing
from kdjax.generation import Sampling
from kdjax.generation.generate import continued
from kdjax.generation.text import end_ids
from kdjax.programs import rollouts
from kdjax.teachers import Teacher
from kdjax.train.checkpoint import fingerprint
from kdjax.train.mesh import batch_sharding, data_shard, make_mesh, place


@dataclasses.dataclass(frozen=True)
class WrittenRows:
  """A `Source` of rows that were written, one text each.

  Attributes:
    arrays: `tokens`, `label`, `mask`, `segment_ids`, `positions`, each [N, T]; see
      `kdjax.programs.rollouts`.
  """

  arrays: Mapping[str, np.ndarray]

  def __len__(self) -> int:
    return len(self.arrays["tokens"])

  def __getitem__(self, position: int) -> dict[str, np.ndarray]:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
    rows = {name: array[positions] for name, array in self.arrays.items()}
    return rows | {"index": np.asarray(positions).astype(np.int32)}


def write_texts(
  writer: Teacher,
  rows: PackedRows,
  data: TextData,
  path: Path,
  *,
  prompt_length: int,
  generations: int,
  seed: int,
  batch_size: int,
  mesh: Mapping[str, int],
) -> WrittenRows:
  """What a model writes after the beginnings of rows, from the disk where it is there already.

  Args:
    writer: a live teacher that can write.
    rows: whose beginnings are the prompts; see `rollouts.beginnings`.
    data: they are of.
    path: of the .npz file.
    prompt_length: tokens of a prompt, at most.
    generations: texts for each prompt.
    seed: of the draws; text g of row r depends on the seed, r and g alone.
    batch_size: rows at a time.
    mesh: `config.mesh`.

  Returns:
    `generations` rows for each of `rows`; row r, text g at g * len(rows) + r.

  Raises:
    KdjaxError: a writer that cannot write, a file of other texts, a full disk, several processes.
  """
  if writer.decode is None:
    raise KdjaxError("texts are to be written by a model that is no causal language model")
  if jax.process_count() > 1:
    raise KdjaxError("texts are written by a single process; start one")
  recipe = {
    "writer": fingerprint(writer.frozen),
    "prompts": fingerprint({"first": rows.plan.first, "start": rows.plan.examples.start}),
    "tokenizer": rows.tokenizer_sha256,
    "options": f"{prompt_length} {generations} {seed} {data.sequence_length}",
  }
  if path.exists():
    with np.load(path, allow_pickle=False) as kept:
      found = {name: str(kept[f"recipe_{name}"]) for name in recipe}
      arrays = {name: kept[name] for name in kept.files if not name.startswith("recipe_")}
    if found != recipe:
      differs = next(name for name in recipe if found[name] != recipe[name])
      raise KdjaxError(f"{path} holds other texts (another {differs}); use another --workdir")
    return WrittenRows(arrays)
  device_mesh = make_mesh(**mesh)
  sharding = batch_sharding(device_mesh)
  eos_ids = end_ids(data.tokenizer)

  @jax.jit
  def write(frozen, batch, numbers):
    prompts = rollouts.beginnings(batch, prompt_length)
    length = batch["tokens"].shape[1]
    written = continued(
      writer.decode(frozen),
      prompts.tokens,
      prompts.lengths,
      rng=jax.random.key(seed),
      max_new_tokens=length - prompts.tokens.shape[1],
      sampling=Sampling(),
      eos_ids=eos_ids,
      rows=numbers,
    )
    return rollouts.written_rows(prompts, written, length)

  parts: list[dict[str, Any]] = []
  data_shard(sharding, batch_size)  # that it divides
  for generation in range(generations):
    for first in range(0, len(rows), batch_size):
      own = np.arange(first, min(first + batch_size, len(rows)))
      filled = np.resize(own, batch_size)
      numbers = (generation * len(rows) + filled).astype(np.int32)
      batch, numbers = place((rows.read(filled), numbers), sharding)
      told = jax.device_get(write(writer.frozen, batch, numbers))
      parts.append({name: array[: len(own)] for name, array in told.items()})
  arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  arrays.pop("sample_log_probs")
  _save(path, arrays | {f"recipe_{name}": np.array(value) for name, value in recipe.items()})
  return WrittenRows(arrays)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  scratch = path.with_suffix(".tmp.npz")
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(scratch, **arrays)
    os.replace(scratch, path)


def chosen_prompts(rows: PackedRows, counts: Sequence[int], *, seed: int) -> list[PackedRows]:
  """Disjoint random sets of rows, of the given sizes.

  Raises:
    KdjaxError: more rows than there are.
  """
  if sum(counts) > len(rows):
    raise KdjaxError(
      f"{' + '.join(map(str, counts))} prompts are more than the {len(rows)} training rows; ask for"
      " fewer, or shorten config.data.sequence_length"
    )
  order = np.random.default_rng(seed).permutation(len(rows))
  ends = np.cumsum([0, *counts])
  return [rows.take(np.sort(order[a:b])) for a, b in itertools.pairwise(ends)]
