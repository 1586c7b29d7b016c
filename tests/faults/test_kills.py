"""Killed at any moment, a run ends bit for bit as if nothing had happened."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from tests.faults import runs

# The long form: KDJAX_KILLS=20 python -m pytest tests/faults
KILLS = int(os.environ.get("KDJAX_KILLS", "3"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  return workdir, runs.finish(workdir)


def test_sigkill_at_random_moments_changes_nothing(undisturbed, tmp_path):
  whole, report = undisturbed
  rng = np.random.default_rng(0)
  landed = 0
  for _ in range(KILLS):
    process = runs.start(tmp_path, log=tmp_path.parent / "log")
    before = runs.steps_on_disk(tmp_path)
    # From right after a new checkpoint (perhaps during the next save) to some steps later.
    landed += runs.kill_when(
      process,
      lambda before=before: runs.steps_on_disk(tmp_path) != before,
      delay=rng.uniform(0, 0.4),
    )
  after = runs.finish(tmp_path)
  assert landed >= 1
  assert after["params_sha256"] == report["params_sha256"]
  assert after["results"] == report["results"]
  assert runs.rows(tmp_path) == runs.rows(whole)
  assert runs.rows(tmp_path / "teacher") == runs.rows(whole / "teacher")


@pytest.fixture(scope="module")
def terminated(tmp_path_factory):
  """A run that got SIGTERM halfway: (folder, its process)."""
  workdir = tmp_path_factory.mktemp("terminated")
  process = runs.start(workdir, log=workdir / "log")
  started = (workdir / "checkpoints" / "15").exists
  assert runs.kill_when(process, started, number=signal.SIGTERM)
  return workdir, process


def test_sigterm_saves_says_so_and_exits_0(undisturbed, terminated, tmp_path):
  workdir = shutil.copytree(terminated[0], tmp_path / "run")
  said = (workdir / "log").read_text()
  assert terminated[1].returncode == 0, said
  assert "run the same command to go on" in said
  assert "Traceback" not in said
  newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
  assert newest < 120
  assert runs.finish(workdir)["params_sha256"] == undisturbed[1]["params_sha256"]


def test_a_finished_run_is_not_run_again(undisturbed, tmp_path):
  whole, report = undisturbed
  before = (whole / "metrics.jsonl").read_text()
  again = runs.finish(whole)
  assert again["params_sha256"] == report["params_sha256"]
  assert again["results"] == report["results"]
  assert (whole / "metrics.jsonl").read_text() == before


def test_another_mesh_goes_on_with_equal_values(undisturbed, terminated, tmp_path):
  workdir = shutil.copytree(terminated[0], tmp_path / "run")
  mesh = {"mesh.data": 2, "mesh.fsdp": 4}
  report = runs.finish(workdir, devices=8, **mesh)
  wanted = undisturbed[1]["results"]["student_distilled"]
  found = report["results"]["student_distilled"]
  assert report["device"].startswith("8 x")
  # Another mesh adds up in another order: equal to rounding, not to the bit.
  for name in ("accuracy", "nll", "forward_kl"):
    assert found[name] == pytest.approx(wanted[name], rel=1e-3), name
  assert [r["step"] for r in runs.rows(workdir)] == [r["step"] for r in runs.rows(undisturbed[0])]
  json.dumps(report)
