"""Two real processes train what one process trains on the same mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import xla
from tests.end_to_end.text import text_folder

ROOT = Path(__file__).parents[2]
SMALL = {
  "teacher.model.depth": 1,
  "teacher.model.width": 16,
  "teacher.train.total_steps": 60,
  "total_steps": 60,
  "batch_size": 64,
  "checkpoint.every": 30,
  "mesh.data": 2,
  "mesh.fsdp": 2,
}


def start(
  workdir: Path, devices: int, config="configs/digits_kd.py", changes=SMALL, **environment: str
):
  command = [sys.executable, "-m", "launch.train", f"--config={config}"]
  command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in changes.items())]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices)} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture
def text(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("localhost", 0))
    return one.getsockname()[1]


def test_two_processes_give_what_one_gives(tmp_path):
  alone = start(tmp_path / "one", devices=4)
  assert alone.wait(timeout=300) == 0, alone.stdout.read()
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  pair = [start(tmp_path / "two", devices=2, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
  said = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  assert "student_distilled" in said[0] and "report:" not in said[1]
  one, two = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two"))
  assert one["device"].startswith("4 x") and two["device"].startswith("4 x")
  for row in ("teacher", "student_distilled"):
    for name in ("nll", "brier"):
      # Sums over processes are taken in another order: equal to rounding.
      assert two["results"][row][name] == pytest.approx(one["results"][row][name], rel=1e-3)


DOMAINS = """
import ml_collections
from pathlib import Path
from tests.end_to_end.text import config_of

def get_config():
  return ml_collections.ConfigDict(config_of(
    Path({folder!r}), mesh__data=2, total_steps=5, data__validation_fraction=0.2,
    data__weights={{"counts": 0.9, "letters": 0.1}},
    domain_weights={{"name": "ddk", "every": 2, "rows": 4}},
    teacher__train={{"total_steps": 1, "objective": {{"name": "cross_entropy"}}}},
  ))
"""


def test_two_processes_follow_the_domains_as_one_does(tmp_path, text):
  config = tmp_path / "domains.py"
  config.write_text(DOMAINS.format(folder=str(text)))
  own = {"config": str(config), "changes": {}}
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  pair = [start(tmp_path / "two", 1, JAX_PROCESS_ID=str(i), **own, **cluster) for i in range(2)]
  said = [process.communicate(timeout=600)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  alone = start(tmp_path / "one", devices=2, **own)
  assert alone.wait(timeout=600) == 0, alone.stdout.read()
  results, weights = [], []
  for name in ("one", "two"):
    meta = tmp_path / name / "checkpoints" / "5" / "meta" / "metadata"
    weights.append(json.loads(meta.read_text())["data"]["stream"]["weights"])
    report = json.loads((tmp_path / name / "report.json").read_text())
    results.append(report["results"]["student_distilled"]["nll"])
  assert [start for start, _ in weights[0]] == [0, 16, 32]
  for (_, one), (_, two) in zip(*weights, strict=True):
    assert two == pytest.approx(one, rel=1e-3)
  # Hosts with mixtures of their own would have made batches of other rows.
  assert results[1] == pytest.approx(results[0], rel=1e-3)


def test_half_a_cluster_is_told(tmp_path):
  process = start(tmp_path, devices=1, JAX_COORDINATOR_ADDRESS="localhost:1")
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 2
  assert "JAX_NUM_PROCESSES" in said and "Traceback" not in said
