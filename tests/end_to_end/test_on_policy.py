"""Methods that learn from the student's own texts, as jobs: they train, and resume to the bit."""

import json
import math

import jax
import pytest

from configs import base, distillm, gkd, minillm, multi_granularity, on_policy_reverse_kl
from kdjax.errors import KdjaxError
from kdjax.train.config import check_config
from kdjax.train.job import dry_run, run_job, variant_of
from kdjax.train.loop import Interrupted
from kdjax.train.metrics import timing
from tests.end_to_end.text import config_of, text_folder

MODULES = {
  "distillm": distillm,
  "gkd": gkd,
  "minillm": minillm,
  "multi_granularity": multi_granularity,
  "reverse": on_policy_reverse_kl,
}
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def taught(folder):
  config = config_of(folder, total_steps=1, teacher__train__total_steps=20)
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    run_job(config, folder / "taught")
  return folder / "taught" / "teacher"


def tiny(folder, name, **changes):
  """Program and objective of a config on the tests' text, for a few steps."""
  own = MODULES[name].get_config().to_dict()
  config = config_of(folder, total_steps=STEPS, data__validation_fraction=0.2, **changes)
  config["program"] = own["program"] | {"prompt_length": 8}
  config["objective"] = own["objective"] | {"chunk_size": 16}
  if name == "distillm":  # every validation raises the threshold, and the buffer fills at once
    config["program"] |= {"validate_every": 1, "capacity": 8, "margin": -100.0, "increment": 0.5}
  config["eval"] |= {"log_every": 1, "every": STEPS}
  config["checkpoint"]["every"] = STEPS
  config["samples"] = {"prompts": [], "max_new_tokens": 1}
  return config


@pytest.mark.parametrize("name", MODULES)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(name, folder, taught):
  config = tiny(folder, name, teacher__checkpoint=str(taught))
  whole = run_job(config, folder / f"{name}_whole")
  asked = iter([False] * (STEPS // 2) + [True])
  with pytest.raises(Interrupted):
    run_job(config, folder / name, stop=lambda: next(asked))
  again = run_job(config, folder / name)
  assert again["params_sha256"] == whole["params_sha256"]
  rows = [
    [
      {key: value for key, value in json.loads(line).items() if not timing(key)}
      for line in (place / "metrics.jsonl").open()
    ]
    for place in (folder / name, folder / f"{name}_whole")
  ]
  assert rows[0] == rows[1]
  trained = [row for row in rows[0] if row["split"] == "train"]
  assert len(trained) == STEPS and all(math.isfinite(row["loss"]) for row in trained)
  if name == "distillm":
    assert any(row["on_policy"] for row in trained) and any(row["replayed"] for row in trained)
  elif name != "gkd":
    assert all(row["on_policy"] for row in trained)


@pytest.mark.parametrize("module", MODULES.values())
def test_every_variant_is_a_config(module):
  for variant in ("small", "paper"):
    for which in ("method", "baseline"):
      check_config(variant_of(module.get_config(variant).to_dict(), which))
  with pytest.raises(ValueError, match="'smal' does not exist"):
    module.get_config("smal")


def test_images_are_not_written(folder):
  config = tiny(folder, "gkd")
  config["data"] = base.get_config().to_dict()["data"]
  with pytest.raises(KdjaxError, match=r"config\.program writes text"):
    dry_run(config)
