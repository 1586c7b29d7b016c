"""Jobs whose teacher lies on devices of its own, by `config.teacher.mesh`."""

import json
import re

import jax
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.job import dry_run, run_job
from kdjax.train.loop import Interrupted
from tests.end_to_end.helpers import tiny
from tests.faults.runs import rows

APART = {"mesh.data": 2, "teacher.mesh.data": 4}


def report(folder):
  return json.loads((folder / "report.json").read_text())


def after(steps):
  """Says stop when asked for the so-many-th time."""
  asked = iter(range(steps))
  return lambda: next(asked, None) is None


def test_a_job_ends_as_one_with_its_teacher_beside_it_and_may_change_midway(tmp_path):
  with jax.numpy_dtype_promotion("standard"):
    beside = run_job(tiny({"mesh.data": 2}), tmp_path / "beside")
    whole = run_job(tiny(APART), tmp_path / "apart")
    with pytest.raises(Interrupted):
      run_job(tiny(APART), tmp_path / "moved", stop=after(14))
    moved = run_job(tiny({"mesh.data": 2}), tmp_path / "moved")
  for row, wanted in beside["results"].items():
    for name, value in wanted.items():
      assert whole["results"][row][name] == pytest.approx(value, rel=1e-5, abs=1e-6)
      assert moved["results"][row][name] == pytest.approx(value, rel=1e-5, abs=1e-6)
  assert [row["step"] for row in rows(tmp_path / "moved")] == [
    row["step"] for row in rows(tmp_path / "beside")
  ]


def test_stopped_and_resumed_apart_it_ends_with_the_same_bits(tmp_path):
  with jax.numpy_dtype_promotion("standard"):
    whole = run_job(tiny(APART), tmp_path / "whole")
    with pytest.raises(Interrupted):
      run_job(tiny(APART), tmp_path / "stopped", stop=after(14))
    again = run_job(tiny(APART), tmp_path / "stopped")
  assert again["params_sha256"] == whole["params_sha256"]
  assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"teacher.kind": "ema", "objective": {"name": "hinton_kd"}}, "kind is 'ema'"),
    (
      {
        "program": {"name": "bilevel", "virtual_learning_rate": 0.1},
        "data.validation_fraction": 0.1,
      },
      "'bilevel' asks the",
    ),
    ({"teacher.mesh.data": 8}, "takes 8 of 8 devices"),
    ({"teacher.mesh.pipeline": 2}, "config.teacher.mesh.pipeline does not exist"),
  ],
)
def test_what_cannot_be_apart_is_told_before_anything_is_computed(changes, told):
  with pytest.raises(KdjaxError, match=re.escape(told)):
    dry_run(tiny(APART | changes))
