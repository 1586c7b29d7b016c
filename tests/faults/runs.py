"""Real processes for the fault tests: start, wait for progress, kill, read what they left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kdjax.train.metrics import timing
from tests import xla

ROOT = Path(__file__).parents[2]
# A run of a few seconds, with a save every 15 steps.
SMALL = {
  "total_steps": 120,
  "batch_size": 64,
  "teacher.model.depth": 1,
  "teacher.model.width": 16,
  "teacher.train.total_steps": 60,
  "checkpoint.every": 15,
  "eval.every": 60,
  "eval.log_every": 10,
}

# What of `report.json` is no matter of the clock.
SAME = ("params_sha256", "results", "step")


def start(
  workdir: Path,
  *,
  devices: int = 1,
  log: Path | None = None,
  config: str = "configs/digits_kd.py",
  **overrides,
):
  """`python -m launch.train --config=CONFIG` as a process of its own; digits are cut to `SMALL`."""
  fields = SMALL | overrides if config == "configs/digits_kd.py" else overrides
  command = [sys.executable, "-m", "launch.train", f"--config={config}"]
  command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla.flags(devices),
  }
  output = subprocess.PIPE if log is None else log.open("a")
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
  )


def finish(workdir: Path, **arguments) -> dict:
  """Runs to the end; returns `report.json`."""
  process = start(workdir, **arguments)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return json.loads((workdir / "report.json").read_text())


def steps_on_disk(workdir: Path) -> int:
  """Finished checkpoints of teacher and student together: the progress of a run."""
  folders = (workdir / "teacher" / "checkpoints", workdir / "checkpoints")
  names = [p.name for folder in folders if folder.is_dir() for p in folder.iterdir()]
  return sum(int(name) for name in names if name.isdigit())


def kill_when(process, ready, *, number=signal.SIGKILL, delay: float = 0.0, timeout: float = 120):
  """Sends a signal some seconds after `ready()`; False if the process ended before."""
  deadline = time.monotonic() + timeout
  while not ready():
    if process.poll() is not None:
      return False
    assert time.monotonic() < deadline, "the run made no progress"
    time.sleep(0.01)
  time.sleep(delay)
  if process.poll() is not None:
    return False
  process.send_signal(number)
  process.wait(timeout=120)
  return True


def wait_for(ready, process, *, timeout: float = 120) -> None:
  """Returns once `ready()`; a process that has ended before is a failure."""
  deadline = time.monotonic() + timeout
  while not ready():
    assert process.poll() is None, f"the run ended with status {process.returncode}"
    assert time.monotonic() < deadline, "the run made no progress"
    time.sleep(0.002)


def saving(workdir: Path, step: int) -> bool:
  """Whether a checkpoint of the student is being written, or has been."""
  folder = workdir / "checkpoints"
  return folder.is_dir() and any(p.name.split(".")[0] == str(step) for p in folder.iterdir())


def children(process: subprocess.Popen) -> list[int]:
  """The processes that one has started, in order."""
  told = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
  return [int(each) for each in told.split()]


def kill(pid: int) -> None:
  os.kill(pid, signal.SIGKILL)


def rows(workdir: Path) -> list[dict]:
  """The metrics log without its timings."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if not timing(k)} for line in lines]
