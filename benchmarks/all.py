"""Every benchmark by one command: one table of ratios, and a plot.

  make models && python -m benchmarks.all [--pytorch=PYTHON] [--only=NAME ...] [--out=DIR]

Each runs in processes of its own, one after the other (some half an hour on two cores), and adds
rows to DIR/rows.jsonl; DIR/table.md and DIR/ratios.png come from these, and DIR/NAME.log has what
each said. PYTHON is an interpreter with PyTorch, transformers and trl; without it the rows that
stand beside PyTorch are left out. A benchmark that fails is named in the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.table import ROWS, Row, as_markdown, machine, read

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Name to arguments; those of the second need PyTorch.
ALONE = {
  "loop_overhead": [],
  "chunked_loss": ["--rounds=2"],
  "cached_training": [],
  "compile_time": ["--rounds=1"],
  "save_stall": ["--rounds=2"],
  "input_pipeline": [],
  "start_up": ["--rounds=1"],
  "weak_scaling": [],
}
BESIDE_PYTORCH = {
  "language_model_step": ["--rounds=1", "--steps=3"],
  "vision_step": ["--rounds=1", "--steps=5"],
  "decoding": ["--rounds=2"],
}


def run(name: str, arguments: Sequence[str], out: Path) -> bool:
  """One benchmark; whether it went through."""
  started = time.monotonic()
  print(f"{name} ...", end=" ", flush=True)
  with (out / f"{name}.log").open("w") as log:
    done = subprocess.run(
      [sys.executable, "-m", f"benchmarks.{name}", *arguments],
      env=os.environ | {ROWS: str(out / "rows.jsonl")},
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    )
  how = "done" if done.returncode == 0 else f"failed, see {out / name}.log"
  print(f"{how} in {time.monotonic() - started:.0f} s", flush=True)
  return done.returncode == 0


def plot(rows: Sequence[Row], path: Path) -> None:
  """A bar for each ratio, on a logarithmic axis, with the bars that were set."""
  figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1), layout="constrained")
  places = range(len(rows))
  colours = ["tab:red" if r.bar is not None and r.ratio > r.bar else "tab:blue" for r in rows]
  axes.barh(places, [row.ratio for row in rows], color=colours)
  for place, row in zip(places, rows, strict=True):
    if row.bar is not None:
      axes.plot([row.bar] * 2, [place - 0.45, place + 0.45], color="black")
  axes.axvline(1, color="grey", linewidth=0.8)
  axes.set_xscale("log")
  axes.set_yticks(places, [row.name for row in rows], fontsize=7)
  axes.invert_yaxis()
  axes.set_xlabel("kdjax / what stands beside it; black: the bar; red: missed")
  figure.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pytorch", help="Python that has PyTorch")
  parser.add_argument("--only", nargs="*", choices=[*ALONE, *BESIDE_PYTORCH])
  parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  (options.out / "rows.jsonl").unlink(missing_ok=True)
  (options.out / "rows.jsonl").touch()
  wanted = dict(ALONE)
  if options.pytorch:
    beside = BESIDE_PYTORCH.items()
    wanted |= {name: [f"--pytorch={options.pytorch}", *more] for name, more in beside}
  failed = [
    name
    for name, arguments in wanted.items()
    if (not options.only or name in options.only) and not run(name, arguments, options.out)
  ]
  rows = read(options.out / "rows.jsonl")
  text = f"{machine()}\n\n{as_markdown(rows)}\n"
  text += "".join(f"\n{name} failed.\n" for name in failed)
  (options.out / "table.md").write_text(text)
  if rows:
    plot(rows, options.out / "ratios.png")
  print(f"\n{text}\nfiles: {options.out}/table.md, ratios.png")
  sys.exit(bool(failed))


if __name__ == "__main__":
  main()
