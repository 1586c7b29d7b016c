"""The job that must always work, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(module: str, *flags: str) -> str:
  """Runs `python -m module flags` from the repository; returns stdout."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, "-m", module, *flags],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("quickstart")
  table = launch("launch.train", "--config=configs/quickstart.py", f"--workdir={workdir}")
  return workdir, table


def test_distillation_helps_where_labels_are_few(quickstart):
  workdir, table = quickstart
  report = json.loads((workdir / "report.json").read_text())
  results = report["results"]
  assert list(results) == ["teacher", "student_alone", "student_distilled"]
  accuracy = {name: row["accuracy"] for name, row in results.items()}
  assert accuracy["teacher"] > 0.95
  assert accuracy["student_distilled"] > accuracy["student_alone"] + 0.02
  assert all(row in table for row in results)
  assert report["step"] == 1200 and len(report["params_sha256"]) == 64
  assert report["seconds"] > 0 and "cpu" in report["device"] and "jax" in report["versions"]


def test_what_it_leaves_can_be_read_and_plotted(quickstart):
  workdir, _ = quickstart
  page = (workdir / "report.html").read_text()
  for section in ("Accuracy", "Learning curves", "Agreement", "Calibration"):
    assert section in page
  assert page.count("data:image/png;base64,") >= 4
  for folder in (workdir, workdir / "teacher", workdir / "student_alone"):
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "eval" and 0 < last["accuracy"] <= 1
    assert any((folder / "tensorboard").iterdir())
    assert (folder / "checkpoints" / str(last["step"])).is_dir()


@pytest.mark.parametrize(
  ("model", "folder", "row"),
  [("student", "", "student_distilled"), ("teacher", "teacher", "teacher")],
)
def test_evaluate_gives_the_reports_figures(quickstart, tmp_path, model, folder, row):
  workdir, _ = quickstart
  launch(
    "launch.evaluate",
    "--config=configs/quickstart.py",
    f"--checkpoint={workdir / folder}",
    f"--model={model}",
    f"--out={tmp_path / 'metrics.json'}",
  )
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  wanted = json.loads((workdir / "report.json").read_text())["results"][row]
  for name in ("accuracy", "nll", "ece"):
    assert metrics[name] == pytest.approx(wanted[name], rel=1e-4), name


def test_a_finished_teacher_serves_another_run(quickstart, tmp_path):
  workdir, _ = quickstart
  launch(
    "launch.train",
    "--config=configs/digits_kd.py",
    f"--workdir={tmp_path}",
    f"--config.teacher.checkpoint={workdir / 'teacher'}",
    "--config.total_steps=60",
  )
  assert not (tmp_path / "teacher").exists()
  report = json.loads((tmp_path / "report.json").read_text())
  wanted = json.loads((workdir / "report.json").read_text())["results"]["teacher"]
  assert report["results"]["teacher"]["accuracy"] == pytest.approx(wanted["accuracy"])
