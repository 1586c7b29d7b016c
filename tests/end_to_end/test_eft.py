"""Emulated fine-tuning as a job: its models are trained once, it teaches, and mistakes are told."""

import json

import jax
import pytest

from configs import eft
from kdjax.errors import KdjaxError
from kdjax.train.compare import run_compare
from kdjax.train.config import check_config
from kdjax.train.emulation import parts_of
from kdjax.train.job import dry_run, run_job
from kdjax.train.stages import stages_of
from tests.end_to_end.text import config_of, text_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def tiny(folder, emulate=(), **changes):
  """The base on counts and letters; a small one too, and then on letters alone."""
  config = config_of(folder, total_steps=4, samples__prompts=[], **changes)
  letters = {"letters": config["data"]["sources"]["letters"]}
  learn = {"total_steps": 6, "objective": {"name": "cross_entropy", "chunk_size": 16}}
  both = learn | {"data": {"sources": config["data"]["sources"]}}
  config["data"] = config["data"] | {"sources": letters}
  config["teacher"]["kind"] = "emulated"
  config["teacher"]["train"] = both
  config["teacher"]["emulate"] = {
    "reference": {"model": {"name": "decoder", "width": 8, "depth": 1, "heads": 2}, "train": both},
    "tuned": [{"train": learn}],
    "weights": [1.0],
    "target": {"train": learn},
  } | dict(emulate)
  config["baseline"] = {"teacher": {"kind": "frozen"}}
  config["compare"]["vectorize"] = False
  return config


def test_one_command_trains_every_model_and_the_student(folder):
  config, place = tiny(folder), folder / "job"
  report = run_job(config, place)
  rows = report["results"]
  method = config["compare"]["names"]["method"]
  assert list(rows) == ["teacher", "reference", "tuned", "target", "emulated", method]
  assert len({rows[name]["nll"] for name in rows}) == len(rows)
  losses = lambda name: [  # noqa: E731
    json.loads(line)["nll"] for line in (place / name / "metrics.jsonl").open() if "nll" in line
  ]
  # What is trained further does not begin anew: its first loss is near what was left.
  assert rows["tuned"]["nll"] < rows["reference"]["nll"]
  assert rows["target"]["nll"] < rows["teacher"]["nll"] and losses("tuned")
  # What the student's evaluation says of its teacher is of the emulation.
  assert {"agreement", "forward_kl"} & rows[method].keys()
  logged = (place / "tuned" / "metrics.jsonl").read_text()
  again = run_job(config, place)
  assert again["params_sha256"] == report["params_sha256"]
  assert (place / "tuned" / "metrics.jsonl").read_text() == logged


def test_the_baseline_may_have_the_base_alone_as_teacher(folder):
  """It is trained once for both; the two students learn from different teachers."""
  result = run_compare(tiny(folder), folder / "compare", seeds=1)
  assert list(result["teacher"]) == ["teacher", "reference", "tuned", "target", "emulated"]
  assert abs(result["variants"]["baseline"][0] - result["variants"]["method"][0]) > 1e-4
  steps = [json.loads(line)["step"] for line in (folder / "compare/teacher/metrics.jsonl").open()]
  assert steps == sorted(steps)


@pytest.mark.parametrize(
  ("emulate", "told"),
  [
    ({"tuned": []}, "no tuned model"),
    ({"weights": [1.0, 2.0]}, r"weights = \[1.0, 2.0\]; wanted 1"),
    ({"nucleus": 3.0}, "nucleus = 3.0"),
    ({"weight": 1.0}, r"emulate\.weight does not exist \(did you mean 'weights'"),
    ({"tuned": [{"modell": {}}]}, r"tuned\[0\]\.modell does not exist"),
    ({"tuned": {"train": {}}}, r"emulate\.tuned = .* must be a list of mappings"),
    ({"tuned": [3]}, r"tuned\[0\] = 3 must be a mapping"),
    ({"reference": {"train": {}}}, r"reference\.model is missing"),
    ({"tuned": [{"checkpoint": "nowhere"}]}, "nowhere"),
    ({"tuned": [{"train": {"totl_steps": 3}}]}, "totl_steps"),
  ],
)
def test_mistakes_are_told_before_compute(folder, emulate, told):
  with pytest.raises(KdjaxError, match=told), jax.numpy_dtype_promotion("standard"):
    dry_run(tiny(folder, emulate=emulate))


def test_no_stage_takes_a_models_folder(folder):
  config = tiny(folder)
  config["stages"] = [{"name": "tuned"}, {"name": "last"}]
  with pytest.raises(KdjaxError, match=r"stages\[0\]\.name = 'tuned' is the name of another"):
    stages_of(config)


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_the_configs_are_whole(variant):
  config = eft.get_config(variant).to_dict()
  check_config(config)
  names = [part.name for part in parts_of(config)]
  assert names[:3] == ["teacher", "reference", "tuned"]
  assert config["teacher"]["emulate"]["weights"] == (1.0,)
  with pytest.raises(ValueError, match="does not exist"):
    eft.get_config("large")
