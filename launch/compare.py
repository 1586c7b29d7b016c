"""Trains a config's method and its baseline over several seeds and tests the difference.

python -m launch.compare --config=configs/digits_kd.py --seeds=3 --workdir=runs/compare
"""

from pathlib import Path

import jax
from absl import flags

from kdjax.train.compare import run_compare
from launch import main

WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the table")
SEEDS = flags.DEFINE_integer("seeds", 3, "number of seeds, from config.seed on", lower_bound=1)


def job(config, stop) -> None:
  workdir = Path(WORKDIR.value)
  comparison = run_compare(config, workdir, seeds=SEEDS.value, stop=stop)
  if jax.process_index() == 0:
    print(f"\n{comparison['table']}\n\nfiles: {workdir / 'comparison.json'}")


if __name__ == "__main__":
  main.run(job, required=["workdir"])
