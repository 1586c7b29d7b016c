"""Rounds of asking a teacher about images: a student says which, and learns from the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kdjax.data.base import UNLABELLED, DataSet, Source
from kdjax.data.labels import View, subset
from kdjax.data.robust_sampling import (
  inclusion_probabilities,
  margin_gains,
  systematic_sample,
)
from kdjax.data.text.choices import Queries
from kdjax.errors import KdjaxError, writing
from kdjax.programs.evaluators import LOGITS
from kdjax.teachers import Teacher
from kdjax.train.build import build_model
from kdjax.train.config import Config
from kdjax.train.loop import jit_on
from kdjax.train.mesh import batch_sharding, make_mesh, place
from kdjax.train.stage import Stop, train, trained
from kdjax.train.streams import Splits, evaluation_passes

FIELD = "config.selection"
FOLDER = "selection"


def query(
  config: Config,
  splits: Splits,
  workdir: Path,
  teacher: Teacher | None,
  choice: Queries,
  *,
  stop: Stop = lambda: False,
) -> Splits:
  """The labelled training images and those that the teacher was asked about.

  In each round a student is trained from scratch, in WORKDIR/selection/roundN, on what is there;
  by its probabilities the next images are chosen. How often the teacher is wrong is measured on the
  validation images. `queries.json` says what was chosen, and how often the teacher was right about
  it, which no choice depends on.

  Args:
    config: of the student's run.
    splits: training images of which some have labels, validation images that all have.
    workdir: of the run.
    teacher: with logits.
    choice: how to choose.
    stop: see `run_job`.

  Returns:
    Splits whose training images are those; asked ones keep the label -1.

  Raises:
    KdjaxError: no teacher of these classes; see `check_queries` and `train`.
    Interrupted: stopped; the same call goes on.
  """
  if teacher is None or "logits" not in teacher.taps:
    raise KdjaxError(f"{FIELD} asks a teacher that has logits: config.teacher")
  known = np.flatnonzero(splits.train.labels != UNLABELLED)
  pool = np.flatnonzero(splits.train.labels == UNLABELLED)
  size, mesh = config["eval"]["batch_size"], make_mesh(**config["mesh"])

  def told(source: Source) -> Float[np.ndarray, "point class"]:
    ask = jit_on(mesh, lambda frozen, batch: teacher.apply(frozen, (), batch, taps=LOGITS).logits)
    return _probabilities(lambda batch: ask(teacher.frozen, batch), source, size, mesh)

  accuracy = float(np.mean(told(splits.validation).argmax(-1) == splits.validation.labels))
  model = build_model(config["student"], splits.whole, "config.student")
  own = config | {"selection": {"name": "everything"}}
  asked = np.zeros(0, np.int64)
  for number in range(choice.rounds):
    here = splits._replace(train=subset(splits.train, np.concatenate([known, asked])))
    folder = workdir / FOLDER / f"round{number}"
    result, program = train(own, folder, teacher, name=folder.name, stop=stop, splits=here)
    weights = trained(result, program)
    score = jit_on(mesh, lambda weights, batch: model.apply(weights, batch, taps=LOGITS)[0].logits)
    rest = np.setdiff1d(pool, asked)
    probs = _probabilities(
      lambda batch, w=weights, s=score: s(w, batch), subset(splits.train, rest), size, mesh
    )
    wrong = round((1 - accuracy) * len(rest))
    rng = np.random.default_rng((config["seed"], number))
    asked = np.concatenate([asked, rest[chosen(choice, probs, wrong, rng)]])
  right = told(subset(splits.train, asked)).argmax(-1) == true_labels(splits, asked)
  if jax.process_index() == 0:
    path = workdir / FOLDER / "queries.json"
    summary = {
      "strategy": choice.strategy,
      "teacher_accuracy": accuracy,
      "right": float(np.mean(right)),
      "asked": asked.tolist(),
    }
    with writing(path):
      path.write_text(json.dumps(summary, indent=1))
  return splits._replace(train=subset(splits.train, np.concatenate([known, asked])))


def chosen(
  choice: Queries,
  probs: Float[np.ndarray, "point class"],
  wrong: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, "budget"]:
  """Which points to ask about next.

  Args:
    choice: strategy and budget.
    probs: [N, V], the student's.
    wrong: how many of the N the teacher is taken to get wrong; "robust" alone reads it.
    rng: "robust" and "uniform" draw from it.

  Returns:
    `budget` different positions in 0 .. N - 1, sorted.
  """
  if choice.strategy == "uniform":
    return np.sort(rng.choice(len(probs), choice.budget, replace=False))
  if choice.strategy == "robust":
    q = inclusion_probabilities(margin_gains(probs), wrong=wrong, budget=choice.budget)
    return systematic_sample(q, rng)
  p = np.asarray(probs, np.float64)
  hard = margin_gains(p) if choice.strategy == "margin" else -(p * np.log(p + 1e-30)).sum(-1)
  return np.sort(np.argsort(-hard, kind="stable")[: choice.budget])


def check_queries(config: Config, splits: Splits, choice: Queries) -> None:
  """Raises KdjaxError for data that have no images to ask about, or nothing to measure by."""
  if not isinstance(splits.whole, DataSet):
    raise KdjaxError(f"{FIELD} = 'active' asks about images; these data are others")
  if splits.validation is None:
    raise KdjaxError(
      f"{FIELD} measures the teacher on held-out images; set config.data.validation_fraction, such"
      " as 0.1"
    )
  if config["stages"] is not None:
    raise KdjaxError(f"{FIELD} = 'active' is for a method of one run; set config.stages = None")
  free = int((splits.train.labels == UNLABELLED).sum())
  if choice.rounds * choice.budget > free or free == len(splits.train):
    raise KdjaxError(
      f"{FIELD} asks about {choice.rounds} x {choice.budget} images, and of {len(splits.train)}"
      f" {free} have no label; lower config.data.label_fraction (some must have one) or the budget"
    )


def true_labels(splits: Splits, positions: Int[np.ndarray, "point"]) -> Int[np.ndarray, "point"]:
  """The labels that training images had before any was hidden."""
  view = splits.train
  while view is not splits.whole.train and isinstance(view, View):
    view, positions = view.source, view.positions[positions]
  return view.labels[positions]


def _probabilities(
  logits_of: Callable[[dict], jax.Array], source: Source, size: int, mesh
) -> Float[np.ndarray, "point class"]:
  """A model's word on every record of a source, in order."""
  sharding, found = batch_sharding(mesh), []
  for batch in evaluation_passes(source, size, mesh)():
    logits = logits_of(place(batch, sharding)).astype(jnp.float32)
    found.append(np.asarray(jax.nn.softmax(logits)))
  return np.concatenate(found)[: len(source)]
