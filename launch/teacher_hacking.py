"""Distils students from one teacher on several sources of text and says who hacked it.

python -m launch.teacher_hacking --config=configs/teacher_hacking.py --seeds=3 --workdir=runs/hack
"""

from pathlib import Path

import jax
from absl import flags

from kdjax.train.teacher_hacking import run_teacher_hacking
from launch import main

WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the table")
SEEDS = flags.DEFINE_integer("seeds", 1, "students of each source", lower_bound=1)


def job(config, stop) -> None:
  result = run_teacher_hacking(config, Path(WORKDIR.value), seeds=SEEDS.value, stop=stop)
  if jax.process_index() == 0:
    print(f"\n{result['table']}\n\nfiles: {Path(WORKDIR.value) / 'teacher_hacking.json'}")


if __name__ == "__main__":
  main.run(job, required=["workdir"])
