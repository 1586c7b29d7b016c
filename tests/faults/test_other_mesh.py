"""Every config's run, begun on one device, goes on over several as if nothing had been.

All the state that its method carries is laid out anew, and no row is left out or read twice.
The long form: KDJAX_KEYS=all python -m pytest tests/faults/test_other_mesh.py
"""

import itertools
import os
from pathlib import Path

import jax
import pytest

from kdjax.train.job import run_job
from kdjax.train.loop import Interrupted
from tests.end_to_end.helpers import steps
from tests.faults import runs, short
from tests.faults.test_every_key import ALL

# A bank that every step writes into, and texts written before that are learnt from again.
KEYS = os.environ.get("KDJAX_KEYS", "contrastive_representation,distillm").split(",")
TOLERANCE = 2e-3  # of sums in another order, through four steps


def config_of(key: str, mesh: dict) -> dict:
  """The short form of a config on a mesh, with batches that it divides."""
  config = short.get_config(key).to_dict()
  ways = mesh["data"] * mesh["fsdp"]
  config["mesh"] = {"sequence": 1, "tensor": 1} | mesh
  for part in (config, config["teacher"].get("train", {})):
    if part.get("batch_size"):
      part["batch_size"] = -(-part["batch_size"] // 4) * 4
    part["eval"]["batch_size"] = -(-part["eval"].get("batch_size", 4) // 4) * 4
  assert 4 % ways == 0
  return config


def after(count: int, folder: Path):
  """Says stop after so many steps of the run whose log is there."""
  asked = itertools.count(1)
  return lambda: (folder / "metrics.jsonl").exists() and next(asked) >= count


@pytest.mark.parametrize("key", ALL if KEYS == ["all"] else KEYS)
def test_a_run_goes_on_over_several_devices(key, tmp_path):
  one, several = ({"data": 1, "fsdp": 1}, {"data": 2, "fsdp": 2})
  # As a job by itself, not as the tests, has it.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    whole = run_job(config_of(key, one), tmp_path / "whole")
    with pytest.raises(Interrupted):
      run_job(config_of(key, one), tmp_path / "moved", stop=after(2, tmp_path / "moved"))
    assert steps(tmp_path / "moved")[-1] == 2
    moved = run_job(config_of(key, several), tmp_path / "moved")
  assert moved["step"] == whole["step"] == short.STEPS
  given, wanted = (runs.rows(tmp_path / name) for name in ("moved", "whole"))
  assert [row["step"] for row in given] == [row["step"] for row in wanted]
  for own, other in zip(given, wanted, strict=True):
    assert own.keys() == other.keys()
    for name, value in other.items():
      if isinstance(value, float):
        assert own[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), (own["step"], name)
