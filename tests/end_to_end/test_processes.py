"""Two real processes train what one process trains on the same mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import xla

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


def start(workdir: Path, devices: int, **environment: str):
  command = [sys.executable, "-m", "launch.train", "--config=configs/digits_kd.py"]
  command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in SMALL.items())]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices)} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


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


def test_half_a_cluster_is_told(tmp_path):
  process = start(tmp_path, devices=1, JAX_COORDINATOR_ADDRESS="localhost:1")
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 2
  assert "JAX_NUM_PROCESSES" in said and "Traceback" not in said
