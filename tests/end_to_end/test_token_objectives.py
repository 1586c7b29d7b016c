"""Every objective of the configs on tokens trains in a job, in chunks of positions."""

import json
import math

import jax
import pytest

from configs import (
  adaptive_kl,
  capacity_gap_law,
  ddk,
  decoupled_kd,
  first,
  generalized_jsd,
  gold,
  miniplm,
  skewed_kl,
  specializing_small_lms,
  taid,
  total_variation,
  uld,
)
from kdjax.errors import KdjaxError
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.compare import run_compare
from kdjax.train.config import check_config
from kdjax.train.job import dry_run, run_job, variant_of
from tests.data.text.helpers import words_tokenizer
from tests.end_to_end.text import config_of, text_folder

MODULES = {
  module.__name__.removeprefix("configs."): module
  for module in (
    adaptive_kl,
    decoupled_kd,
    first,
    generalized_jsd,
    skewed_kl,
    taid,
    total_variation,
  )
}
CONFIGS = {
  name: module.get_config("tokens" if name == "taid" else "small")
  for name, module in MODULES.items()
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def tiny(folder, own, **changes):
  """The objective and baseline of a config on the tests' text, for a few steps."""
  own = own.to_dict()
  config = config_of(folder, total_steps=6, data__validation_fraction=0.2, **changes)
  config["objective"], config["baseline"] = own["objective"], own["baseline"]
  if "total_steps" in config["objective"]:
    config["objective"] |= {"total_steps": 6}
  config["objective"] |= {"chunk_size": 16}
  config["eval"] |= {"log_every": 1, "every": 6}
  return config


@pytest.fixture(scope="module")
def taught(folder):
  """The folder of a teacher that serves all."""
  config = tiny(folder, CONFIGS["adaptive_kl"], teacher__train={"total_steps": 20})
  config["teacher"]["train"]["objective"] = {"name": "cross_entropy", "chunk_size": 16}
  config["total_steps"] = 1
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    run_job(config, folder / "taught")
  return folder / "taught" / "teacher"


@pytest.mark.parametrize("name", CONFIGS)
def test_an_objective_on_tokens_trains_in_chunks(name, folder, taught):
  config = tiny(folder, CONFIGS[name], teacher__checkpoint=str(taught))
  assert config["objective"]["chunk_size"] < config["data"]["sequence_length"]
  report = run_job(config, folder / name)
  rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
  trained = [row for row in rows if row["split"] == "train"]
  assert len(trained) == 6 and all(math.isfinite(row["loss"]) for row in trained)
  # Each moves the student towards its teacher: below the uniform guess that it starts from.
  student = report["results"]["student_distilled"]
  assert student["nll"] < math.log(259) - 0.2
  if name == "first":
    assert 0.2 < trained[0]["temperature"] < 5
    assert len({row["temperature"] for row in trained}) == 1


def test_five_tokens_from_a_cache_are_calibrated_by_the_live_teacher(folder, taught):
  config = tiny(folder, CONFIGS["first"], teacher__checkpoint=str(taught))
  options = CacheOptions(kind="top_k", k=5)
  cache_teacher(open_session(config, options), folder / "signals")
  told = {"kind": "cached", "cache": str(folder / "signals")}
  logs = {}
  for name, teacher in (("live", {}), ("cached", told)):
    own = config | {"teacher": config["teacher"] | teacher, "total_steps": 1}
    run_job(own, folder / f"first_{name}")
    logs[name] = json.loads((folder / f"first_{name}" / "metrics.jsonl").read_text().split("\n")[0])
  assert logs["cached"]["temperature"] == logs["live"]["temperature"]
  assert logs["cached"]["loss"] == pytest.approx(logs["live"]["loss"], rel=2e-2)  # it is rounded
  alone = config | {"teacher": config["teacher"] | told | {"checkpoint": ""}}
  with pytest.raises(KdjaxError, match=r"give config\.teacher\.checkpoint too"):
    dry_run(alone)


@pytest.mark.parametrize(
  "module",
  [*MODULES.values(), capacity_gap_law, ddk, gold, miniplm, specializing_small_lms, uld],
)
def test_every_variant_is_a_config(module):
  for variant in ("small", "paper"):
    for which in ("method", "baseline"):
      check_config(variant_of(module.get_config(variant).to_dict(), which))
  with pytest.raises(ValueError, match="'smal' does not exist"):
    module.get_config("smal")


def test_a_teacher_of_words_is_matched_where_tokens_are_spelled_alike(folder):
  names = [*["one", "two", "three", "abcdefg", "a", "1", "2", "3"], *map(str, range(4, 60))]
  words_tokenizer(tuple(names)).save_pretrained(folder / "words")
  config = tiny(folder, specializing_small_lms.get_config())
  config["data"] |= {
    "teacher_tokenizer": str(folder / "words"),
    "teacher_sequence_length": 24,
    "warped": True,
  }
  config["teacher"]["train"]["total_steps"] = 4
  run_compare(config | {"total_steps": 2}, folder / "matched", seeds=1)
  log = (folder / "matched" / "method" / "metrics.jsonl").read_text().splitlines()
  first_row = json.loads(log[0])
  assert 0 < first_row["aligned"] < 0.5  # a number of one digit is a byte and a word
  config["data"]["teacher_tokenizer"] = ""
  with pytest.raises(KdjaxError, match="warped = True aligns two tokenizers"):
    dry_run(config)
