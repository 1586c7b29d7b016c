"""Metrics of a checkpoint, without training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from kdjax.errors import KdjaxError
from kdjax.evaluation.tasks import grade, read_task
from kdjax.models.base import Model, ModelVars
from kdjax.models.transformer import Seq2SeqSpec
from kdjax.outputs import Outputs
from kdjax.programs.distill import NO_TEACHER
from kdjax.train.build import build_model, evaluator_of
from kdjax.train.config import Config, check_config
from kdjax.train.few_shot import few_shot_metrics
from kdjax.train.likelihood import continuation_log_probs
from kdjax.train.loop import summarize
from kdjax.train.mesh import TEACHER_RULES, batch_sharding, check_batch, make_mesh, place
from kdjax.train.pretrained import load_model
from kdjax.train.streams import Splits, evaluation_passes, load_data, teacher_data


def evaluate_checkpoint(
  config: Config, folder: Path, *, which: str = "student", tasks: Sequence[str] = (), shots: int = 0
) -> dict[str, float]:
  """Evaluates one model of a run on the test data.

  Args:
    config: the run's config.
    folder: of the run (or its checkpoints).
    which: "student" or "teacher": the architecture that the checkpoint holds.
    tasks: files of multiple-choice tasks in BIG-bench's format, for models of text.
    shots: labelled images of each class for the accuracy by a few examples; 0 leaves that out.

  Returns:
    accuracy, nll, brier, ece and what else the evaluation gives; `<task>/<metric>` for each task;
    `few_shot/<metric>` with shots.

  Raises:
    KdjaxError: no checkpoint there, another architecture, or a mistake in the config.
  """
  check_config(config)
  read = [read_task(path) for path in tasks]
  mesh = make_mesh(**config["mesh"])
  check_batch(config["eval"]["batch_size"], mesh, field="config.eval.batch_size")
  splits = load_data(teacher_data(config["data"]) if which == "teacher" else config["data"])
  if which == "teacher" and not config["teacher"]:
    raise KdjaxError("config.teacher is empty: this config has no teacher to evaluate")
  field = {"student": "config.student", "teacher": "config.teacher.model"}[which]
  spec = config["student"] if which == "student" else config["teacher"]["model"]
  model = build_model(spec, splits.whole, field)
  weights = load_model(folder, model, mesh, TEACHER_RULES)

  results = evaluate_weights(config, splits, model, weights)
  if shots:
    own = splits.whole._replace(train=splits.train)
    size = config["eval"]["batch_size"]
    results |= few_shot_metrics(model, weights, own, mesh, shots=shots, batch_size=size)
  if read and (model.decode is None or isinstance(model.spec, Seq2SeqSpec)):
    raise KdjaxError("--task wants a causal language model; this one continues no text")
  for task in read:
    score = functools.partial(continuation_log_probs, model, weights, splits.whole.tokenizer)
    results |= {f"{task.name}/{name}": value for name, value in grade(task, score).items()}
  return results


def evaluate_weights(
  config: Config, splits: Splits, model: Model, weights: ModelVars
) -> dict[str, float]:
  """The evaluation of a model by itself: its scalars on the test data of `splits`."""
  mesh = make_mesh(**config["mesh"])
  metrics_of = evaluator_of(splits.whole)(model, NO_TEACHER)

  @jax.jit
  def evaluate(weights: ModelVars, batch):
    return metrics_of(weights, lambda taps: Outputs(), batch)

  batches = evaluation_passes(splits.whole.test, config["eval"]["batch_size"], mesh)()
  placed = (place(batch, batch_sharding(mesh)) for batch in batches)
  metrics = summarize(evaluate(weights, batch) for batch in placed)
  return {name: value for name, value in metrics.items() if isinstance(value, float)}
