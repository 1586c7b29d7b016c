"""Ranks methods of one kind: the same pair of models, data, budget and seeds for all.

python -m launch.leaderboard --task=smollm2 --seeds=3 --workdir=runs/leaderboard_smollm2

TASK stands for configs/leaderboard_TASK.py, whose fields are set as those of any config. Goes on
where it was stopped. The table and the figure go into --document, by default beside the runs;
another task's section in it is left as it is.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from kdjax.train.leaderboard import run_leaderboard, write_section
from launch import main

WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and the table")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each method, from config.seed on", lower_bound=1)
TASK = flags.DEFINE_string("task", None, "smollm2, or another configs/leaderboard_TASK.py")
DOCUMENT = flags.DEFINE_string("document", None, "Markdown file; WORKDIR/leaderboard.md if none")


def job(config, stop) -> None:
  workdir = Path(WORKDIR.value)
  document = Path(DOCUMENT.value or workdir / "leaderboard.md")
  board = run_leaderboard(config, workdir, seeds=SEEDS.value, stop=stop)
  if jax.process_index() == 0:
    write_section(document, TASK.value, board, command(sys.argv[1:]))
    print(f"\n{board['table']}\n\nfiles: {document}, {workdir / 'leaderboard.json'}")


def command(arguments: list[str]) -> str:
  """The command as a reader would type it."""
  kept = [each for each in arguments if not each.startswith("--config=")]
  return " ".join(["python -m launch.leaderboard", *kept])


def with_config(arguments: list[str]) -> list[str]:
  """The arguments with the config that --task stands for."""
  tasks = [each.split("=", 1)[1] for each in arguments if each.startswith("--task=")]
  return [*arguments, *(f"--config=configs/leaderboard_{task}.py" for task in tasks[-1:])]


if __name__ == "__main__":
  sys.argv[1:] = with_config(sys.argv[1:])
  main.run(job, required=["workdir", "task"])
