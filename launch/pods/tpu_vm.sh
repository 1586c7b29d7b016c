#!/bin/bash
# One training job on all workers of a TPU VM; see docs/pods.md.
#
#   launch/pods/tpu_vm.sh --name=NAME --zone=ZONE [--project=PROJECT] [--folder=kdjax] \
#     [--python=python3] [--dry_run] -- --config=configs/digits_kd.py --workdir=FOLDER_THAT_ALL_WORKERS_SHARE
#
# Copies the last commit of this repository to ~/FOLDER of every worker, installs it there for a
# Python of 3.11 or later, and trains. --dry_run, or DRY_RUN=1, prints the commands and runs none.

set -euo pipefail

fail() {
  echo "error: $1; see the top of $0" >&2
  exit 2
}

name='' zone='' project='' folder=kdjax python=python3 dry="${DRY_RUN:-}"
while [ "$#" -gt 0 ] && [ "$1" != -- ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --folder=*) folder="${1#*=}" ;;
    --python=*) python="${1#*=}" ;;
    --dry_run) dry=1 ;;
    *) fail "there is no flag $1; flags of launch.train go behind --" ;;
  esac
  shift
done
[ -n "$name" ] || fail "--name=NAME is missing"
[ -n "$zone" ] || fail "--zone=ZONE is missing"
[ "$#" -gt 1 ] || fail "the flags of launch.train are missing; they go behind --"
shift

run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" | sed 's/ $/\n/'
  else
    "$@"
  fi
}

where=(--zone="$zone" --worker=all)
[ -z "$project" ] || where+=(--project="$project")
root="$(cd "$(dirname "$0")/../.." && pwd)"
archive=kdjax.tar.gz
packed="${TMPDIR:-/tmp}/$archive"

[ -n "$dry" ] || git -C "$root" archive --format=tar.gz --output="$packed" HEAD
run gcloud compute tpus tpu-vm scp "$packed" "$name:$archive" "${where[@]}"

# jax asks the machine's metadata which worker it is.
train="$python -m launch.train$(printf ' %q' "${@}") --coordinator=detect"
unpack="$(printf 'mkdir -p %q && tar -xzf %q -C %q && cd %q' "$folder" "$archive" "$folder" "$folder")"
install="$python -m pip install --quiet . 'jax[tpu]'"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$unpack && $install && $train"
