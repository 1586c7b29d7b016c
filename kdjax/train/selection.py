"""The rows that a run learns from: all, some at random, MiniPLM's, or those asked about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import teachers
from kdjax.data.text import PackedRows, choices
from kdjax.data.text.choices import Choice, Queries
from kdjax.data.text.difference_sampling import difference_scores, keep_largest
from kdjax.errors import KdjaxError, writing
from kdjax.teachers import Teacher
from kdjax.train.active import check_queries, query
from kdjax.train.build import build_model, made
from kdjax.train.config import Config, check_config, merge
from kdjax.train.mesh import TEACHER_RULES, make_mesh, teacher_rules
from kdjax.train.pretrained import load_model
from kdjax.train.scores import score_rows
from kdjax.train.stage import Stop, train
from kdjax.train.streams import Splits, load_data

FIELD = "config.selection"
FOLDER = "selection"
SEED = 2000  # a reference is the twin of neither student nor teacher


def select(
  config: Config, workdir: Path, teacher: Teacher | None, *, stop: Stop = lambda: False
) -> Splits:
  """The data of a config, with those training rows that `config.selection` keeps.

  MiniPLM: a small reference model is trained on the validation rows, in WORKDIR/reference; it and
  the teacher score every training row once, in WORKDIR/selection; those with the largest
  differences are kept, in their order, and the student learns from nothing else. What was kept and
  by whose scores is written beside them.

  Args:
    config: of one run.
    workdir: of the run.
    teacher: scores for "difference".
    stop: see `run_job`.

  Raises:
    KdjaxError: see `checked`, `train` and `score_rows`.
    Interrupted: stopped; the same call goes on.
  """
  splits = load_data(config["data"])
  choice = checked(config, splits)
  if choice is None:
    return splits
  if isinstance(choice, Queries):
    return query(config, splits, workdir, teacher, choice, stop=stop)
  count = len(splits.train)
  if choice.model is None:
    order = np.random.default_rng(config["data"]["seed"]).permutation(count)
    return splits._replace(train=splits.train.take(np.sort(order[: int(choice.ratio * count)])))
  if teacher is None or not teacher.anywhere:
    raise KdjaxError(f"{FIELD} needs a teacher that can be asked about any text: config.teacher")
  own = reference_config(config, choice)
  held = splits._replace(train=splits.validation)
  train(own, workdir / "reference", None, name="reference", stop=stop, splits=held)
  mesh = make_mesh(**config["mesh"])
  model = build_model(choice.model, splits.whole, f"{FIELD}.model")
  weights = load_model(workdir / "reference", model, mesh, TEACHER_RULES)
  scores = {}
  for name, each, rules in (
    ("teacher", teacher, teacher_rules(config["teacher"]["rules"])),
    ("reference", teachers.frozen(model, weights), TEACHER_RULES),
  ):
    scores[name] = score_rows(
      each,
      splits.train,
      workdir / FOLDER / name,
      mesh,
      batch_size=config["eval"]["batch_size"],
      rules=rules,
      stop=stop,
    )
  tokens = scores["teacher"][:, 1].astype(np.int64)
  differences = difference_scores(scores["teacher"][:, 0], scores["reference"][:, 0], tokens)
  kept = keep_largest(differences, ratio=choice.ratio)
  if jax.process_index() == 0:
    _write(workdir / FOLDER, splits.train, differences, kept, choice)
  return splits._replace(train=splits.train.take(kept))


def by_seed(config: Config) -> bool:
  """Whether the choice is a student's, so that each seed has its own."""
  return config["selection"].get("name") == "active"


def checked(config: Config, splits: Splits) -> Choice | Queries | None:
  """What `config.selection` asks for; None for everything.

  Raises:
    KdjaxError: a mistake in its fields, data that are not text in one side's tokens, a share of no
      row, or nothing held out for the reference.
  """
  choice = made(choices, config["selection"], FIELD)
  if choice is None:
    return None
  if isinstance(choice, Queries):
    check_queries(config, splits, choice)
    return choice
  if not isinstance(splits.train, PackedRows):
    raise KdjaxError(f"{FIELD} chooses rows of text in one side's tokens; these data are others")
  if not int(choice.ratio * len(splits.train)):
    raise KdjaxError(
      f"{FIELD}.ratio = {choice.ratio} of {len(splits.train)} rows is none; raise it"
    )
  if choice.model is not None and splits.validation is None:
    raise KdjaxError(
      f"{FIELD} trains its reference on documents of its own; set config.data.validation_fraction,"
      " such as 0.2"
    )
  return choice


def reference_config(config: Config, choice: Choice) -> Config:
  """The config of the run that trains the reference."""
  own = merge(config, choice.train)
  check_config(own)
  return own | {
    "student": choice.model,
    "seed": own["seed"] + SEED,
    "program": {"name": "distill"},
    "domain_weights": {"name": "fixed"},
    "selection": {"name": "everything"},
  }


def _write(
  folder: Path, rows: PackedRows, scores: np.ndarray, kept: np.ndarray, choice: Choice
) -> None:
  """The scores and the kept rows as arrays, and what they amount to."""
  counts = {
    name: {
      "rows": int((rows.plan.domain == i).sum()),
      "kept": int((rows.plan.domain[kept] == i).sum()),
    }
    for i, name in enumerate(rows.domains)
  }
  made_by: Mapping[str, Any] = {
    side: json.loads((folder / side / "manifest.json").read_text())
    for side in ("teacher", "reference")
  }
  told = {"ratio": choice.ratio, "rows": len(rows), "kept": len(kept), "domains": counts, **made_by}
  with writing(folder):
    np.savez(folder / "kept.npz", scores=scores, kept=kept)
    (folder / "selection.json").write_text(json.dumps(told, indent=1))
