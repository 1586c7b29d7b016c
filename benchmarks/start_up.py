"""From the command to the end of a job of two steps: nothing compiled before, again, and resumed.

  python -m benchmarks.start_up [--rounds=3] [--config=configs/digits_kd.py]

Its teacher has one step. Whole processes are timed: Python, imports, data, compiling, the steps,
evaluation, checkpoints and report. Resumed, its last checkpoint has been taken away.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row, emit


def seconds(config: str, workdir: Path, cache: Path) -> float:
  """One run of `launch.train`."""
  started = time.perf_counter()
  subprocess.run(
    [
      *(sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}"),
      *("--config.total_steps=2", "--config.teacher.train.total_steps=1"),
      *("--config.checkpoint.every=1", "--config.eval.every=1000"),
      "--config.teacher.train.optimizer.warmup_steps=0",
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
    check=True,
    capture_output=True,
  )
  return time.perf_counter() - started


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--config", default="configs/digits_kd.py")
  arguments = parser.parse_args()
  os.environ |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  times = {"cold": [], "cached": [], "resumed": [], "imports": []}
  for _ in range(arguments.rounds):
    with tempfile.TemporaryDirectory() as parent:
      folder, cache = Path(parent), Path(parent) / "programs"
      times["cold"].append(seconds(arguments.config, folder / "a", cache))
      times["cached"].append(seconds(arguments.config, folder / "b", cache))
      shutil.rmtree(folder / "b" / "checkpoints" / "2")
      times["resumed"].append(seconds(arguments.config, folder / "b", cache))
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import launch.train"], check=True)
    times["imports"].append(time.perf_counter() - started)
  cold, cached, resumed, imports = (statistics.median(each) for each in times.values())
  emit(
    [
      Row("a job of two steps, its programs compiled before", cached, cold, "s", "never", 1.0),
      Row("resumed after the first of them", resumed, cached, "s", "from the start", 1.0),
      Row("imports alone", imports, cached, "s", "the job, compiled before"),
    ]
  )


if __name__ == "__main__":
  main()
