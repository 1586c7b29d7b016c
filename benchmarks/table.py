"""What the benchmarks hand to `benchmarks.all`: rows of a figure, what it stands beside, a bar."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROWS = "KDJAX_BENCHMARK_ROWS"  # the file that rows are added to


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    name: what was measured.
    ours: kdjax's figure.
    other: the one that it stands beside.
    unit: of both.
    against: what the other is.
    bar: their ratio, ours by the other's, is to be at most this; None where none was set.
  """

  name: str
  ours: float
  other: float
  unit: str
  against: str
  bar: float | None = None

  @property
  def ratio(self) -> float:
    return self.ours / self.other


def emit(rows: Iterable[Row]) -> None:
  """Prints rows, and adds them to the file that `ROWS` names."""
  for row in rows:
    print(
      f"{row.name}: {row.ours:.4g} {row.unit}, {row.against} {row.other:.4g}, ratio {row.ratio:.3f}"
    )
    if path := os.environ.get(ROWS):
      with Path(path).open("a") as file:
        file.write(json.dumps(row._asdict()) + "\n")


def read(path: Path) -> list[Row]:
  """The rows of such a file."""
  return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def machine(packages: Iterable[str] = ("jax", "flax", "optax", "orbax-checkpoint")) -> str:
  """The machine and the versions in a line."""
  models = [
    line.split(":")[1].strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines()
    if line.startswith("model name")
  ]
  versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
  return (
    f"{len(models)} x {models[0] if models else platform.processor()}, {platform.system()},"
    f" Python {platform.python_version()}, {versions}"
  )


def as_markdown(rows: Iterable[Row]) -> str:
  """A table with a row each."""
  lines = ["| measured | kdjax | beside it | ratio | bar |", "|---|---|---|---|---|"]
  for row in rows:
    if row.bar is None:
      bar = ""
    else:
      bar = f"{row.bar:g}: {'met' if row.ratio <= row.bar else 'missed'}"
    lines.append(
      f"| {row.name} | {row.ours:.4g} {row.unit} | {row.against}: {row.other:.4g} {row.unit}"
      f" | {row.ratio:.3f} | {bar} |"
    )
  return "\n".join(lines)
