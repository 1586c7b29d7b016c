"""The experiment on teacher hacking: one command, resumed where it stopped; mistakes are told."""

import json

import jax
import numpy as np
import pytest

from configs import teacher_hacking
from kdjax.errors import KdjaxError
from kdjax.train.config import check_config
from kdjax.train.hacking_report import summary
from kdjax.train.loop import Interrupted
from kdjax.train.teacher_hacking import run_teacher_hacking
from tests.end_to_end.text import config_of, text_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def tiny(folder, **changes):
  config = config_of(folder, total_steps=8, samples__prompts=[], data__pack="none")
  learn = {"total_steps": 6, "objective": {"name": "cross_entropy", "chunk_size": 16}}
  config["teacher"]["model"] = {"name": "decoder", "width": 16, "depth": 1, "heads": 2}
  config["teacher"]["train"] = learn
  config["objective"] = {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 16}
  config["eval"] |= {"best_metric": "golden", "every": 2}
  config["checkpoint"]["every"] = 4
  config["teacher_hacking"] = {
    "prompt_length": 8,
    "oracle_prompts": 24,
    "prompts": 8,
    "test_rows": 5,
    "drawn_from": "student",
    "divergence": "reverse_kl",
    "oracle": {"model": {"name": "decoder", "width": 24, "depth": 1, "heads": 2}, "train": learn},
    "sft": learn,
    "sources": {
      "fixed": {"generations": 2},
      "own": {"writer": "student", "online": True, "prompts": 12},
    },
    "baseline": "fixed",
  } | changes
  return config


def test_one_command_writes_the_histories_and_goes_on(folder):
  config = tiny(folder)
  whole = run_teacher_hacking(config, folder / "whole", seeds=1)
  assert [len(runs) for runs in whole["sources"].values()] == [1, 1]
  for runs in whole["sources"].values():
    for run in runs:
      assert run["steps"] == [0, 2, 4, 6, 8]  # before any step, too
      assert min(run["proxy"] + run["golden"]) > 0
  # All students of a seed start as one, so that they are at one distance; then they differ.
  starts = [runs[0]["golden"][0] for runs in whole["sources"].values()]
  assert starts == [starts[0]] * 2
  assert len({runs[0]["golden"][-1] for runs in whole["sources"].values()}) == 2
  assert whole["summary"]["own"]["against_baseline"]["seeds"] == 1
  assert whole["summary"]["fixed"]["against_baseline"] is None
  saved = json.loads((folder / "whole" / "teacher_hacking.json").read_text())
  assert saved["table"] == whole["table"] and "golden - fixed" in saved["table"]
  assert (folder / "whole" / "teacher_hacking.png").read_bytes()[:4] == b"\x89PNG"
  with np.load(folder / "whole" / "fixed.npz") as texts:
    assert texts["tokens"].shape == (2 * 8, 48)
    same = texts["tokens"][:8] == texts["tokens"][8:]
    assert same[:, 0].all() and not same.all()  # two texts for each prompt
  calls = iter(range(10**6))
  # Stopped within the first source: after three times six steps, and five of its eight.
  with pytest.raises(Interrupted):
    run_teacher_hacking(config, folder / "again", seeds=1, stop=lambda: next(calls) > 3 * 7 + 5)
  assert not (folder / "again" / "teacher_hacking.json").exists()
  again = run_teacher_hacking(config, folder / "again", seeds=1)
  assert whole["sources"] == again["sources"]


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"sources": {}}, "sources is empty"),
    ({"baseline": "nothing"}, "baseline = 'nothing' is none of the sources"),
    ({"prompts": 0}, "prompts = 0 must be at least 1"),
    ({"prompts": 10**6}, "prompts are more than the"),
    ({"promts": 1}, r"promts does not exist \(did you mean 'prompts'"),
    ({"divergence": "kl"}, "divergence = 'kl' does not exist"),
    ({"prompt_length": 48}, "prompt_length = 48"),
    ({"sources": {"a": {"writer": "oracle"}}}, r"sources\.a\.writer = 'oracle' does not exist"),
    ({"sources": {"a": {"writer": "student"}}}, r"sources\.a: the student changes"),
    ({"sources": {"a": {"onlin": True}}}, r"sources\.a\.onlin does not exist"),
    ({"sources": {"a": {"online": True, "generations": 2}}}, r"sources\.a\.generations is for"),
    ({"sources": {"a": {"generations": 0}}}, r"generations = 0 must be an integer"),
    ({"sft": {"total_stepz": 3}}, "total_stepz"),
  ],
)
def test_mistakes_are_told_before_compute(folder, changes, told):
  if changes.get("sources"):
    changes = changes | {"baseline": "a"}
  with pytest.raises(KdjaxError, match=told), jax.numpy_dtype_promotion("standard"):
    run_teacher_hacking(tiny(folder, **changes), folder / "mistakes")
  assert not (folder / "mistakes").exists() or not any((folder / "mistakes").iterdir())


def test_the_summary_counts_flags_and_rebounds():
  steps = [0, 1, 2, 4, 8, 16, 32, 64]
  law = [9.0] + [1 / s for s in steps[1:]]
  flat = law[:4] + [law[3]] * 4
  golden = [2.0, 1.5, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4]
  told = summary(
    {
      "fixed": [{"steps": steps, "proxy": flat, "golden": golden}] * 2,
      "fresh": [{"steps": steps, "proxy": law, "golden": sorted(golden)[::-1]}] * 2,
    },
    "fixed",
  )
  assert told["fixed"]["flagged"] == 2 and told["fixed"]["rebound"] == pytest.approx(0.4)
  assert told["fresh"]["flagged"] == 0 and told["fresh"]["rebound"] == 0
  assert told["fresh"]["deviation"] == pytest.approx(0, abs=1e-9)
  assert told["fresh"]["against_baseline"]["paired_difference"] == pytest.approx(-0.4)


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_the_configs_are_whole(variant):
  config = teacher_hacking.get_config(variant).to_dict()
  check_config(config)
  assert config["teacher_hacking"]["baseline"] in config["teacher_hacking"]["sources"]
  if variant == "paper":
    assert (config["total_steps"], config["batch_size"]) == (390_625, 32)
