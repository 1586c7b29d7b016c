"""Comparisons: pairs of seeds, a file that says what was found, resumption."""

import copy
import json

import jax
import numpy as np
import pytest

from configs import digits_kd, minilm, nd_loss, taid, talking_models, tgeo_kd
from kdjax.train.compare import run_compare
from kdjax.train.config import check_config
from kdjax.train.job import variant_of


def tiny(module, variant="small", **overrides) -> dict:
  """A config of the module with a short run and a small teacher, on one device."""
  config = module.get_config(variant)
  config.total_steps = 8
  config.batch_size = 32
  config.teacher.train.total_steps = 8
  config.teacher.train.optimizer = {"learning_rate": 3e-3}
  config.checkpoint.every = config.eval.every = 4
  config.eval.log_every = 2
  config.mesh.data = 1
  config.update(overrides)
  return config.to_dict()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """A comparison on two devices, its seeds in one program. (config, folder, what it gave)"""
  config, folder = tiny(digits_kd, mesh={"data": 2}), tmp_path_factory.mktemp("together")
  with jax.numpy_dtype_promotion("standard"):  # as every test here has it (see conftest.py)
    return config, folder, run_compare(config, folder, seeds=2)


@pytest.mark.parametrize(
  "module, variant",
  [(nd_loss, "small"), (minilm, "digits"), (talking_models, "small"), (tgeo_kd, "small")]
  + [(taid, "small")],
  ids=lambda value: getattr(value, "__name__", value),
)
def test_every_method_runs_beside_its_baseline(module, variant, tmp_path):
  comparison = run_compare(tiny(module, variant), tmp_path, seeds=2)
  saved = json.loads((tmp_path / "comparison.json").read_text())
  values = saved["variants"]
  assert saved["metric"] == "accuracy" and saved["higher_is_better"] is True
  assert {len(values["baseline"]), len(values["method"])} == {2}
  difference = np.mean(values["method"]) - np.mean(values["baseline"])
  assert saved["paired_difference"] == pytest.approx(difference)
  assert saved["mean"]["method"] == pytest.approx(np.mean(values["method"]))
  assert (tmp_path / "comparison.png").stat().st_size > 1000
  assert all(
    name in comparison["table"] for name in module.get_config(variant).compare.names.values()
  )


@pytest.mark.parametrize("module", [nd_loss, talking_models, tgeo_kd])
def test_the_larger_images_have_the_methods_own_settings(module):
  small, fashion = (module.get_config(variant).to_dict() for variant in ("small", "fashion"))
  assert fashion["data"]["name"] == "fashion_mnist"
  for own in ("objective", "program", "baseline"):
    assert fashion[own] == small[own]
  for which in ("baseline", "method"):
    check_config(variant_of(fashion, which))


def test_one_program_for_all_seeds_gives_what_one_run_each_gives(together, tmp_path):
  config, _, whole = together
  apart = copy.deepcopy(config)
  apart["compare"]["vectorize"] = False
  apart = run_compare(apart, tmp_path, seeds=2)
  for variant in ("baseline", "method"):
    # 597 test images: at most one of them may fall the other way by rounding.
    np.testing.assert_allclose(
      whole["variants"][variant], apart["variants"][variant], atol=1.01 / 597
    )


def test_a_second_call_goes_on_where_the_first_stopped(together):
  config, folder, first = together
  logged = (folder / "method" / "metrics.jsonl").read_text()
  assert run_compare(config, folder, seeds=2)["variants"] == first["variants"]
  assert (folder / "method" / "metrics.jsonl").read_text() == logged
