#!/bin/bash
# One training job on the GPUs of several nodes, one process a GPU; see docs/pods.md.
#
#   sbatch --nodes=2 launch/pods/slurm.sh --config=configs/digits_kd.py --workdir=/shared/run
#
# --workdir must be on a file system that all nodes share. DRY_RUN=1 bash launch/pods/slurm.sh FLAGS
# prints what would run. Options of sbatch on its command line go before those below.
#SBATCH --job-name=kdjax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# SIGTERM to the tasks two minutes before the end: they save, and the same command goes on.
#SBATCH --signal=TERM@120

set -euo pipefail
if [ "$#" -eq 0 ]; then
  echo "error: give the flags of launch.train, such as --config=FILE --workdir=FOLDER" >&2
  exit 2
fi

# The tasks find each other by SLURM's variables; one that fails ends the others.
command=(srun --kill-on-bad-exit=1 python -m launch.train "$@")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}" | sed 's/ $/\n/'
  exit 0
fi
exec "${command[@]}"
