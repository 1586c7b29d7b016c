"""Metrics of a checkpoint, without training."""

from __future__ import annotations

from pathlib import Path

import jax

from kdjax.errors import KdjaxError
from kdjax.models.base import ModelVars
from kdjax.outputs import Outputs
from kdjax.programs.distill import NO_TEACHER
from kdjax.train.build import build_model, evaluator_of
from kdjax.train.config import Config, check_config
from kdjax.train.loop import summarize
from kdjax.train.mesh import TEACHER_RULES, batch_sharding, check_batch, make_mesh, place
from kdjax.train.pretrained import load_model
from kdjax.train.streams import evaluation_passes, load_data


def evaluate_checkpoint(
  config: Config, folder: Path, *, which: str = "student"
) -> dict[str, float]:
  """Evaluates one model of a run on the test data.

  Args:
    config: the run's config.
    folder: of the run (or its checkpoints).
    which: "student" or "teacher": the architecture that the checkpoint holds.

  Returns:
    accuracy, nll, brier, ece and what else the evaluation gives.

  Raises:
    KdjaxError: no checkpoint there, another architecture, or a mistake in the config.
  """
  check_config(config)
  mesh = make_mesh(**config["mesh"])
  check_batch(config["eval"]["batch_size"], mesh, field="config.eval.batch_size")
  splits = load_data(config["data"])
  if which == "teacher" and not config["teacher"]:
    raise KdjaxError("config.teacher is empty: this config has no teacher to evaluate")
  field = {"student": "config.student", "teacher": "config.teacher.model"}[which]
  spec = config["student"] if which == "student" else config["teacher"]["model"]
  model = build_model(spec, splits.whole, field)
  weights = load_model(folder, model, mesh, TEACHER_RULES)

  metrics_of = evaluator_of(splits.whole)(model, NO_TEACHER)

  @jax.jit
  def evaluate(weights: ModelVars, batch):
    return metrics_of(weights, lambda taps: Outputs(), batch)

  batches = evaluation_passes(splits.whole.test, config["eval"]["batch_size"], mesh)()
  placed = (place(batch, batch_sharding(mesh)) for batch in batches)
  metrics = summarize(evaluate(weights, batch) for batch in placed)
  return {name: value for name, value in metrics.items() if isinstance(value, float)}
