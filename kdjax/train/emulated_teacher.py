"""Trains the models of an emulated teacher one after another, and says how good each is."""

from __future__ import annotations

from pathlib import Path

from kdjax.models.base import ModelVars
from kdjax.programs.base import Start
from kdjax.teachers import Teacher
from kdjax.train.build import build_model
from kdjax.train.config import Config
from kdjax.train.emulation import Part, emulated_model, parts_of
from kdjax.train.evaluate import evaluate_weights
from kdjax.train.pretrained import build_teacher, teacher_config, trains_teacher
from kdjax.train.stage import Stop, train
from kdjax.train.streams import load_data, teacher_data


def prepare_emulated(
  config: Config, workdir: Path, *, stop: Stop
) -> tuple[Teacher, dict[str, dict], dict[str, Path]]:
  """The teacher of `config.teacher.emulate`; (teacher, a row for each model, folders of runs).

  Args:
    config: the whole config.
    workdir: each model that has to be trained is trained in the folder of its name in it.
    stop: see `run_job`.

  Returns:
    The rows are evaluations on the test text of `config.data`, whatever a model was trained on:
    `teacher` is the base, then `reference`, `tuned`, `target` and, last, `emulated`.
  """
  whole = load_data(config["data"]).whole
  splits = load_data(teacher_data(config["data"]))
  folders: dict[str, Path] = {}
  results: dict[str, dict] = {}

  def weights(part: Part) -> ModelVars:
    own = part.config | {"teacher": part.config["teacher"] | {"dtype": "float32"}}
    trained_in = [folders[part.name]] if part.name in folders else []
    return build_teacher(own, whole, trained=trained_in).frozen

  parts = {part.name: part for part in parts_of(config)}
  for index, (name, part) in enumerate(parts.items()):
    if trains_teacher(part.config):
      given = None
      if part.starts_from:
        before = weights(parts[part.starts_from])
        given = Start(before.params, before.state)
      run = teacher_config(part.config, index)
      train(run, workdir / name, None, name=name, stop=stop, given=given)
      folders[name] = workdir / name
    model = build_model(part.config["teacher"]["model"], splits.whole, f"config.teacher ({name})")
    results[name] = evaluate_weights(config, splits, model, weights(part))
  teacher = build_teacher(config, whole, trained=list(folders.values()))
  model = emulated_model(config, splits.whole)
  results["emulated"] = evaluate_weights(config, splits, model, teacher.frozen)
  return teacher, results, folders
