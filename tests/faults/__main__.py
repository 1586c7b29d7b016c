"""Does every kind of fault to a small job several times, and counts how it ends.

python -m tests.faults --times=3 --kills=50 --document=docs/reliability.md

Faults: see `tests.faults.injections`; --only=NAME,NAME takes some. Each start of the job takes some
ten seconds on two busy cores, and most faults take two. The status is 1 where one did not end well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.faults.bench import Bench, Found
from tests.faults.injections import FAULTS
from tests.faults.table import bad, format_table, write_document

TRIES = 3  # for one that came too late


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
  parser.add_argument("--times", type=int, default=3, help="of each fault")
  parser.add_argument("--kills", type=int, help="of each fault that is a SIGKILL of one process")
  parser.add_argument("--only", default="", help=f"some of {', '.join(FAULTS)}")
  parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
  parser.add_argument("--document", type=Path, help="Markdown file with the marks of a table")
  parser.add_argument("--keep", type=Path, help="folder for the runs, which is kept")
  told = parser.parse_args(arguments)
  names = told.only.split(",") if told.only else list(FAULTS)
  if unknown := set(names) - set(FAULTS):
    parser.error(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
  if told.keep and told.keep.is_dir() and any(told.keep.iterdir()):
    parser.error(f"--keep={told.keep} must be a new or an empty folder")
  results: dict[str, list[Found]] = {}
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="kdjax_faults_") as folder:
    root = (told.keep or Path(folder)).absolute()
    root.mkdir(parents=True, exist_ok=True)
    try:
      bench = Bench(root, np.random.default_rng(0))
      for name in names:
        bench.rng = np.random.default_rng([told.seed, list(FAULTS).index(name)])
        times = told.kills if name.startswith("sigkill") and told.kills else told.times
        inject(bench, name, times, results.setdefault(FAULTS[name][0], []))
    except KeyboardInterrupt:
      print("stopped; the table has what there is")
  table = format_table(results)
  minutes = (time.monotonic() - began) / 60
  print(f"\n{table}\n\nin {minutes:.0f} minutes")
  if told.document:
    shown = " ".join(["python -m tests.faults", *(f"--{k}={v}" for k, v in _given(told))])
    write_document(told.document, f"`{shown}`, {minutes:.0f} minutes:\n\n{table}")
  return int(any(bad(found) for each in results.values() for found in each))


def inject(bench: Bench, name: str, times: int, found: list[Found]) -> None:
  """Adds to `found` until it holds so many injections, or none comes in time."""
  missed = 0
  while (left := times - sum(each.injected for each in found)) > 0 and missed < TRIES:
    began = time.monotonic()
    each = FAULTS[name][1](bench, left)
    missed = 0 if each.injected else missed + 1
    if each.injected or missed == TRIES:
      found.append(each)
    print(f"{name}: {each} ({time.monotonic() - began:.0f} s)", flush=True)


def _given(told: argparse.Namespace):
  names = ("times", "kills", "only", "seed")
  return [(name, getattr(told, name)) for name in names if getattr(told, name) not in (None, "", 0)]


if __name__ == "__main__":
  sys.exit(main())
