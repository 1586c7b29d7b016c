"""Trains what a config describes, or goes on with it.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from pathlib import Path

import jax
from absl import flags

from kdjax.train.job import run_job
from kdjax.train.report import format_table
from launch import main

PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps", "", "such as 10:13: a trace of these steps of the student, in WORKDIR/profile"
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the report")


def job(config, stop) -> None:
  workdir = Path(WORKDIR.value)
  if PROFILE_STEPS.value:
    config["profile"] = PROFILE_STEPS.value
  report = run_job(config, workdir, stop=stop)
  if jax.process_index() == 0:
    print(f"\n{format_table(report['results'])}\n\nreport: {workdir / 'report.html'}")


if __name__ == "__main__":
  main.run(job, required=["workdir"])
