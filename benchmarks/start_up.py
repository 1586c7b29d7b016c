"""From the command to its first step: with nothing compiled before, again, and resumed.

  python -m benchmarks.start_up [--rounds=3] [--config=configs/digits_kd.py]

The job ends after its first step (its teacher's too). Whole processes are timed: Python, imports,
data, compiling, one step, evaluation, checkpoint and report.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row, emit


def seconds(config: str, workdir: Path, cache: Path, steps: int) -> float:
  """One run of `launch.train`."""
  started = time.perf_counter()
  subprocess.run(
    [
      *(sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}"),
      *(f"--config.total_steps={steps}", "--config.teacher.train.total_steps=1"),
      *("--config.checkpoint.every=1", "--config.eval.every=1000"),
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
      times["cold"].append(seconds(arguments.config, folder / "a", cache, 1))
      times["cached"].append(seconds(arguments.config, folder / "b", cache, 1))
      times["resumed"].append(seconds(arguments.config, folder / "b", cache, 2))
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import launch.train"], check=True)
    times["imports"].append(time.perf_counter() - started)
  cold, cached, resumed, imports = (statistics.median(each) for each in times.values())
  emit(
    [
      Row("a job of one step, its programs compiled before", cached, cold, "s", "never", 1.0),
      Row("resumed for one step more", resumed, cold, "s", "from nothing", 1.0),
      Row("imports alone", imports, cached, "s", "the job, compiled before"),
    ]
  )


if __name__ == "__main__":
  main()
