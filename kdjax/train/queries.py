"""Asking a teacher about some of the images without a label, in one stage after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.data.base import UNLABELLED, Source
from kdjax.data.choices import Queries
from kdjax.data.labels import View, subset
from kdjax.data.pipeline import evaluation_batches
from kdjax.data.robust_queries import (
  entropy_gains,
  margin_gains,
  robust_inclusions,
  systematic_sample,
)
from kdjax.errors import KdjaxError, writing
from kdjax.models.base import ModelVars
from kdjax.teachers import Teacher
from kdjax.train.build import build_model, is_text
from kdjax.train.config import Config
from kdjax.train.mesh import batch_sharding, data_shard, make_mesh, place
from kdjax.train.streams import Splits

FIELD = "config.selection"
FOLDER = "queries"
FILE = "queries.json"


class Before(NamedTuple):
  """The stage before.

  Attributes:
    student: its `config.student`.
    weights: that it ended with.
    folder: of its run.
  """

  student: Mapping[str, Any]
  weights: ModelVars
  folder: Path


def ask(
  config: Config,
  choice: Queries,
  splits: Splits,
  workdir: Path,
  teacher: Teacher | None,
  before: Before | None,
) -> Splits:
  """The labelled images, what was asked before, and `choice.budget` more images without a label.

  What they are and why is written to WORKDIR/queries/queries.json. A second call reads it: a run
  goes on with the same images.

  Args:
    config: of one stage.
    choice: from `config.selection`.
    splits: all images.
    workdir: of the stage.
    teacher: whose accuracy on the validation images says how many of its labels are wrong.
    before: the stage before, whose student says how sure it is; None in the first.

  Raises:
    KdjaxError: a folder that cannot be written. See `check_queries` and `check_rounds` for others.
  """
  file = workdir / FOLDER / FILE
  labels = splits.train.labels
  labelled = np.flatnonzero(labels != UNLABELLED)
  if file.exists():
    asked = np.array(json.loads(file.read_text())["asked"], np.int64)
  else:
    asked, told = _chosen(config, choice, splits, teacher, before)
    if jax.process_index() == 0:
      with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told | {"asked": asked.tolist()}, indent=1))
  return splits._replace(train=subset(splits.train, np.sort(np.append(labelled, asked))))


def _chosen(
  config: Config,
  choice: Queries,
  splits: Splits,
  teacher: Teacher | None,
  before: Before | None,
) -> tuple[np.ndarray, dict[str, Any]]:
  """(positions of all images asked about so far, what there is to tell of them)."""
  labels = splits.train.labels
  asked = np.zeros(0, np.int64)
  if before is not None and (before.folder / FOLDER / FILE).exists():
    asked = np.array(json.loads((before.folder / FOLDER / FILE).read_text())["asked"], np.int64)
  told: dict[str, Any] = {"by": choice.by, "budget": choice.budget}
  if not choice.budget:
    return asked, told
  pool = np.setdiff1d(np.flatnonzero(labels == UNLABELLED), asked)
  mesh = make_mesh(**config["mesh"])
  size = config["eval"]["batch_size"]
  model = build_model(before.student, splits.whole, "config.student")

  def student(weights, batch):
    return model.apply(weights, batch, taps=frozenset({"logits"}))[0].logits

  def expert(frozen, batch):
    return teacher.apply(frozen, (), batch, taps=frozenset({"logits"})).logits

  # The state of a batch norm and the like is read, not changed: nothing is trained here.
  unsure = _probabilities(student, before.weights, subset(splits.train, pool), size, mesh)
  held = splits.validation
  right = _probabilities(expert, teacher.frozen, held, size, mesh).argmax(-1) == held.labels
  # At most all but one, so that there is a game.
  wrong = min(round((1 - right.mean()) * len(pool)), len(pool) - 1)
  rng = np.random.default_rng((config["seed"], len(asked)))
  new = pool[_drawn(choice, unsure, wrong, rng)]
  told |= {"pool": len(pool), "teacher_accuracy": float(right.mean()), "wrong": wrong}
  if (truth := _truth(splits.train, new)) is not None:
    says = _probabilities(expert, teacher.frozen, subset(splits.train, new), size, mesh).argmax(-1)
    told["right"] = float((says == truth).mean())
  return np.append(asked, new), told | {"new": new.tolist()}


def _drawn(choice: Queries, probs: np.ndarray, wrong: int, rng: np.random.Generator) -> np.ndarray:
  """Positions in the pool."""
  if choice.by == "robust":
    inclusions, _ = robust_inclusions(margin_gains(probs), wrong, choice.budget)
    return systematic_sample(inclusions, rng)
  if choice.by == "uniform":
    return np.sort(rng.choice(len(probs), choice.budget, replace=False))
  gains = margin_gains(probs) if choice.by == "margin" else entropy_gains(probs)
  return np.sort(np.argsort(-gains, kind="stable")[: choice.budget])


def _probabilities(
  logits: Callable[..., jax.Array], weights: Any, source: Source, batch_size: int, mesh
) -> np.ndarray:
  """[len(source), classes], the same on every process."""
  index, count = data_shard(batch_sharding(mesh), batch_size)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  ask = jax.jit(lambda w, batch: jax.nn.softmax(logits(w, batch), axis=-1), out_shardings=whole)
  found = [
    np.asarray(ask(weights, place(batch, batch_sharding(mesh))))
    for batch in evaluation_batches(
      source, batch_size=batch_size, shard_index=index, shard_count=count
    )
  ]
  return np.concatenate(found)[: len(source)]


def _truth(source: Source, positions: np.ndarray) -> np.ndarray | None:
  """Labels that are only hidden, for the report; None where there are none."""
  while isinstance(source, View):
    source, positions = source.source, source.positions[positions]
  truth = source.labels[positions]
  return None if (truth == UNLABELLED).any() else truth


def check_rounds(rounds: Sequence[tuple[Queries, Splits, bool]]) -> None:
  """Raises KdjaxError where one stage after another asks for more than there is.

  Args:
    rounds: of each stage in turn, what its `config.selection` asks for (or another choice), its
      data, and whether the stage before hands it a student.
  """
  asked = 0
  for index, (choice, splits, has_student) in enumerate(rounds):
    if not isinstance(choice, Queries) or not choice.budget:
      continue
    field = f"config.stages[{index}].selection.budget = {choice.budget}"
    if not has_student:
      raise KdjaxError(
        f"{field}, but no stage before it hands on a student that could say what to ask; give it"
        " budget = 0, and the stages after it theirs"
      )
    left = int((splits.train.labels == UNLABELLED).sum()) - asked
    if choice.budget > left:
      raise KdjaxError(
        f"{field}, but {left} images without a label are left to ask about; lower it, or have fewer"
        " stages"
      )
    asked += choice.budget


def check_queries(config: Config, choice: Queries, splits: Splits) -> None:
  """Raises KdjaxError where these data, or this teacher, cannot be asked."""
  if is_text(splits.whole):
    raise KdjaxError(f"{FIELD}.name = 'queries' chooses images, and config.data.name is text")
  if choice.budget and splits.validation is None:
    raise KdjaxError(
      f"{FIELD} reads the teacher's share of mistakes off held-out images; set"
      " config.data.validation_fraction, such as 0.1"
    )
  if choice.budget and config["teacher"].get("kind", "frozen") != "frozen":
    raise KdjaxError(
      f"{FIELD} asks a teacher about new images; config.teacher.kind ="
      f" {config['teacher']['kind']!r} cannot be, use 'frozen'"
    )
  if (splits.train.labels == UNLABELLED).all():
    raise KdjaxError(f"{FIELD} wants some labels to begin with; raise config.data.label_fraction")
  if not (splits.train.labels == UNLABELLED).any():
    raise KdjaxError(
      f"{FIELD} wants images without a label to ask about; set config.data.label_fraction below 1"
    )
