"""Distils a grid of students from a grid of teachers and fits the law of the capacity gap.

python -m launch.capacity_gap --config=configs/capacity_gap_law.py --seeds=3 --workdir=runs/gap
"""

from pathlib import Path

import jax
from absl import flags

from kdjax.train.capacity_gap import run_grid
from launch import main

WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the table")
SEEDS = flags.DEFINE_integer("seeds", 1, "runs of each pair, from config.seed on", lower_bound=1)


def job(config, stop) -> None:
  result = run_grid(config, Path(WORKDIR.value), seeds=SEEDS.value, stop=stop)
  if jax.process_index() == 0:
    print(f"\n{result['table']}\n\nfiles: {Path(WORKDIR.value) / 'capacity_gap.json'}")


if __name__ == "__main__":
  main.run(job, required=["workdir"])
