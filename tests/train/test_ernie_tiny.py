"""ERNIE-Tiny: what its stages change, what they hand on, and what they leave alone."""

import itertools
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import ernie_tiny, minilm
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.job import run_job
from kdjax.train.stages import stages_of
from tests.data.text.helpers import words_tokenizer
from tests.models.convert.folders import FOLDER

BERT = str(FOLDER / "bert")


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_each_stage_changes_what_the_papers_table_says(variant):
  stages = stages_of(ernie_tiny.get_config(variant).to_dict())
  assert [stage.name for stage in stages] == [
    "general", "general_enhanced", "task_adaptive", "task_specific",
  ]  # fmt: skip
  changed = [
    {key for key in a.config if a.config[key] != b.config[key]} - {"total_steps"}
    for a, b in itertools.pairwise(stages)
  ]
  assert changed == [{"teacher"}, {"data"}, {"objective"}]
  assert [stage.taught_by for stage in stages] == ["own", "method", "method", "method"]
  teachers = [stage.config["teacher"]["model"] for stage in stages[:2]]
  assert teachers[0] == teachers[1] | {"name": "pretrained"}
  terms = [set(stage.config["objective"]["terms"]) for stage in stages]
  assert terms == [{"latent"}] * 3 + [{"latent", "labels"}]
  # The baseline has as many steps as all stages.
  config = ernie_tiny.get_config(variant).to_dict()
  steps = sum(stage.config["total_steps"] for stage in stages)
  assert config["baseline"]["total_steps"] == steps


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_minilm_teaches_an_assistant_that_teaches_the_student(variant):
  assistant, general, task = stages_of(minilm.get_config(variant).to_dict())
  assert (assistant.gives, general.taught_by, task.taught_by) == ("teacher", "before", "method")
  assert general.config["teacher"]["model"] == assistant.config["student"]
  assert general.config["student"] == task.config["student"]
  assert task.config["objective"] == {"name": "cross_entropy"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A job of the four stages on a BERT of three layers and texts of a few words."""
  folder = tmp_path_factory.mktemp("ernie")
  words_tokenizer().save_pretrained(folder / "tokenizer")
  for name in ("train", "test", "general"):
    rows = [{"text": "one two three"[: 3 + 4 * (i % 3)], "label": i % 2} for i in range(8)]
    if name == "general":
      rows = [{"text": row["text"]} for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
  config = ernie_tiny.get_config("paper").to_dict()
  config |= {"total_steps": 2, "batch_size": 4}
  config["mesh"] |= {"data": 1}
  config["data"] |= {"tokenizer": str(folder / "tokenizer"), "sequence_length": 8}
  config["data"] |= {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
  config["student"] = {"name": "text_classifier", "path": BERT, "layers": 1}
  config["teacher"]["model"] = {"name": "text_classifier", "path": BERT}
  config["teacher"]["train"]["total_steps"] = 1
  config["objective"]["terms"]["latent"]["objective"]["relation_heads"] = 4
  config["teacher"]["train"]["optimizer"]["warmup_steps"] = config["optimizer"]["warmup_steps"] = 0
  config["eval"] |= {"batch_size": 8}
  stages = []
  for stage in config["stages"]:
    stage = dict(stage) | {"total_steps": 2}
    if "objective" in stage:
      stage["objective"] = ernie_tiny.terms(latent={"name": "latent"})
    if "general" in stage["name"]:
      stage["data"] = {"train": str(folder / "general.jsonl")}
    if stage["name"] == "general":
      stage["teacher"] = {"model": {"name": "pretrained", "path": BERT}}
    stages.append(stage)
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    run_job(config | {"stages": stages}, folder / "run")
  return folder / "run"


def saved(folder, step=None):
  """(params, objective_params) of a run's newest checkpoint."""
  checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
  manager, step = checkpoints._manager, step or checkpoints.steps()[-1]
  args = {"params": ocp.args.StandardRestore(), "training": ocp.args.StandardRestore()}
  found = manager.restore(step, args=ocp.args.Composite(**args))
  checkpoints.close()
  return found["params"], found["training"]["objective_params"]


def test_no_stage_but_the_last_moves_the_head_and_each_goes_on_with_the_projection(finished):
  names = ("general", "general_enhanced", "task_adaptive", ".")
  params, objective = zip(*(saved(finished / name) for name in names), strict=True)
  for before, after in itertools.pairwise(params[:3]):
    assert np.array_equal(before["head"]["bias"], after["head"]["bias"])
    one, two = (np.asarray(each["encoder"]["embed"]["tokens"]) for each in (before, after))
    assert 0 < np.abs(one - two).max() < 0.01  # two small steps, not another beginning
  assert np.abs(params[3]["head"]["bias"]).max() > 0
  projections = [np.asarray(each["latent"]["projection"]) for each in objective]
  for before, after in itertools.pairwise(projections):
    assert 0 < np.abs(before - after).max() < 0.01
  assert np.abs(projections[0] - np.eye(32)).max() > 0
