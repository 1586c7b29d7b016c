"""From `config.data` to the batches of one run on one mesh."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from kdjax import data as sources
from kdjax.data import augment, labels, pipeline
from kdjax.data.base import DataSet
from kdjax.errors import KdjaxError, within
from kdjax.programs.replicate import interleave
from kdjax.resolve import check_type
from kdjax.train.build import is_text, made
from kdjax.train.config import Config
from kdjax.train.loop import Data
from kdjax.train.mesh import batch_sharding, data_shard
from kdjax.train.signal_rows import cached_rows

# What `config.data` holds beside the source's own arguments.
SHARED = {
  "seed": int,
  "label_fraction": float,
  "labelled_only": bool,
  "validation_fraction": float,
  "augment": None,
  "threads": int,
}


class Splits(NamedTuple):
  """A data set whose training labels are hidden and whose records are split as the config says.

  Text splits itself, by documents.
  """

  whole: DataSet
  train: Any
  validation: Any  # None without `validation_fraction`


def load_data(spec: Mapping[str, Any]) -> Splits:
  """The data of `config.data`; read once per process.

  Raises:
    KdjaxError: an unknown source or field, missing or damaged files, fractions out of range.
  """
  return _load(json.dumps(spec, sort_keys=True))


@functools.lru_cache(maxsize=4)
def _load(spec: str) -> Splits:
  own = json.loads(spec)
  if not own.get("path"):  # the source's own default; some have no path at all
    own.pop("path", None)
  for name, kind in SHARED.items():
    if name not in own:
      raise KdjaxError(f"config.data.{name} is missing; start from configs/base.py")
    check_type(own[name], kind, f"config.data.{name}")
  shared = {name: own.pop(name) for name in SHARED}
  if shared["seed"] < 0:
    raise KdjaxError(f"config.data.seed = {shared['seed']} must be at least 0")
  if own.get("name") in ("text", "text_pairs"):
    own["validation_fraction"] = shared["validation_fraction"]
  whole = made(sources, own, "config.data", also=SHARED)
  if is_text(whole):
    if shared["label_fraction"] < 1 or shared["labelled_only"]:
      raise KdjaxError(
        "config.data.label_fraction and labelled_only hide labels of images; text is its own label"
      )
    return Splits(whole, whole.train, whole.validation)
  whole_labels = not shared["validation_fraction"] and not shared["labelled_only"]
  if getattr(whole, "places", ()) and (shared["label_fraction"] < 1 or not whole_labels):
    raise KdjaxError(
      "config.data.label_fraction, labelled_only and validation_fraction choose by the label of an"
      f" image; those of {whole.name} have one for each place: leave them at 1, False and 0"
    )
  train, validation = whole.train, None
  if shared["validation_fraction"]:
    with within("config.data.validation_fraction"):
      train, validation = labels.split_off(
        train, shared["validation_fraction"], seed=shared["seed"]
      )
  if shared["label_fraction"] < 1:
    with within("config.data.label_fraction"):
      train = labels.hide_labels(train, shared["label_fraction"], seed=shared["seed"])
  if shared["labelled_only"]:
    train = labels.labelled_only(train)
  return Splits(whole, train, validation)


def teacher_data(spec: Mapping[str, Any]) -> dict[str, Any]:
  """`config.data` for a run of the teacher alone: in its own tokens, where it has some."""
  own = {
    name: value
    for name, value in spec.items()
    if not name.startswith("teacher_") and name != "warped"
  }
  if not spec.get("teacher_tokenizer"):
    return own
  length = spec.get("teacher_sequence_length") or spec["sequence_length"]
  return own | {"tokenizer": spec["teacher_tokenizer"], "sequence_length": length}


class Together:
  """Several streams read in step, their rows interleaved: one stream per seed of one program.

  Attributes:
    streams: of each seed.
  """

  def __init__(self, streams: Sequence[Any]):
    self.streams = streams

  def __next__(self):
    return interleave([next(stream) for stream in self.streams])

  def set_weights(self, weights: Mapping[str, float]) -> None:
    for stream in self.streams:
      stream.set_weights(weights)

  def get_state(self):
    return [stream.get_state() for stream in self.streams]

  def set_state(self, state):
    for stream, own in zip(self.streams, state, strict=True):
      stream.set_state(own)


def evaluation_passes(source: Any, batch_size: int, mesh: Mesh) -> Callable[[], Iterable[Any]]:
  """A function that starts one pass over this process's rows of padded batches."""
  index, count = data_shard(batch_sharding(mesh), batch_size)
  return lambda: pipeline.evaluation_batches(
    source, batch_size=batch_size, shard_index=index, shard_count=count
  )


def augmentation(specs: Sequence[Mapping[str, Any]]) -> augment.Augment | None:
  """The augmentation of `config.data.augment`; None where it is empty."""
  check_type(specs, list, "config.data.augment")
  parts = [made(augment, spec, f"config.data.augment[{i}]") for i, spec in enumerate(specs)]
  return augment.compose(*parts) if parts else None


def open_data(
  config: Config,
  splits: Splits,
  mesh: Mesh,
  streams: Sequence[str],
  *,
  seeds: Sequence[int] | None = None,
  prepare_on: str = "train",
) -> Data:
  """The training stream and evaluation passes of one run, this process's rows only.

  Args:
    config: `batch_size`, `seed`, `data` and `eval`.
    splits: from `load_data`.
    mesh: decides which rows are this process's.
    streams: what the program wants, ("train",) or ("train", "validation").
    seeds: a stream per seed, interleaved, instead of `config.seed`.
    prepare_on: "train" or "validation": what `training_pass` is over.

  Raises:
    KdjaxError: validation rows are wanted without `config.data.validation_fraction`.
  """
  spec, batch_size = config["data"], config["batch_size"]
  if "validation" in (*streams, prepare_on) and splits.validation is None:
    field = "config.program" if "validation" in streams else "config.objective"
    raise KdjaxError(
      f"{field} needs a validation split: set config.data.validation_fraction, such as 0.1"
    )
  index, count = data_shard(batch_sharding(mesh), batch_size)
  change, versions, train = augmentation(spec["augment"]), 1, splits.train
  crop, shape = augment.crop_size(change), getattr(splits.whole, "image_shape", None)
  if crop is not None and shape[:2] != (crop, crop):
    raise KdjaxError(
      f"config.data.augment: random_resized_crop has size = {crop}, and images to evaluate on are"
      f" {shape[0]} x {shape[1]}; set config.data.size, or the crop's size, to be the same"
    )
  if config["teacher"].get("kind") == "cached":
    # What was augmented when the teacher saw it comes so from its source.
    cached = cached_rows(config, train, change)
    change, versions, train = None, cached.versions, cached.rows

  def stream(seed: int):
    every = {
      name: pipeline.training_stream(
        train if name == "train" else getattr(splits, name),
        batch_size=batch_size,
        seed=seed,
        shard_index=index,
        shard_count=count,
        augment=change if name == "train" else None,
        versions=versions if name == "train" else 1,
        threads=spec["threads"],
      )
      for name in streams
    }
    return every["train"] if len(every) == 1 else pipeline.paired_stream(every)

  size = config["eval"]["batch_size"]
  return Data(
    stream=stream(config["seed"]) if seeds is None else Together([stream(s) for s in seeds]),
    evaluation=evaluation_passes(splits.whole.test, size, mesh),
    training_pass=evaluation_passes(getattr(splits, prepare_on), size, mesh),
  )
