"""Metrics on their way out: summed as pairs, divided once, written to JSONL and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary

from kdjax.errors import KdjaxError, writing

Pairs = Mapping[str, tuple[Any, Any]]


def add(total: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
  """Adds (sum, count) pairs to a running total of them, in float64 on the host."""
  for name, (num, den) in pairs.items():
    old_num, old_den = total.get(name, (0.0, 0.0))
    total[name] = (old_num + np.asarray(num, np.float64), old_den + np.asarray(den, np.float64))
  return total


def divide(total: Pairs) -> dict[str, float]:
  """Scalar pairs as means; entries that counted nothing, and vectors, are left out."""
  return {name: float(num / den) for name, (num, den) in total.items() if np.ndim(num) == 0 and den}


class NonFinite(KdjaxError):
  """A step gave values that are not finite."""

  def __init__(self, step: int, terms: str):
    self.step = step
    super().__init__(
      f"non-finite values at step {step} in {terms}; earlier checkpoints are kept. Lower"
      " config.optimizer.learning_rate or set config.optimizer.clip_norm; or set"
      " config.on_nonfinite to 'skip' or 'roll_back'"
    )


def timing(name: str) -> bool:
  """Whether a metric is of the clock: no two runs have the same."""
  return "_per_second" in name or "seconds/" in name


def check_finite(step: int, pairs: Pairs) -> None:
  """Raises NonFinite naming the step and the terms that are not finite."""
  bad = [name for name, (num, _) in pairs.items() if not np.all(np.isfinite(num))]
  if bad:
    terms = [name for name in bad if name.startswith("loss/")] or bad
    raise NonFinite(step, ", ".join(terms))


class MetricLog:
  """Writes one run's metrics: `metrics.jsonl` and TensorBoard events, from one process.

  Resuming at a step drops what was logged after it, so the files end as if nothing had happened.
  """

  def __init__(self, folder: Path, *, resume_step: int, write: bool):
    self._file = self._events = None
    if not write:
      return
    self._path = path = folder / "metrics.jsonl"
    kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
    scratch = path.with_suffix(".tmp")
    with writing(path):
      scratch.write_text("".join(json.dumps(row) + "\n" for row in kept))
      os.replace(scratch, path)
      self._file = path.open("a", buffering=1)
      # tensorboardX's SummaryWriter writes in a thread, and blocks for ever once a full disk has
      # ended that thread.
      events = folder / "tensorboard"
      events.mkdir(exist_ok=True)
      # TensorBoard reads a folder's files in the order of their names. What follows the number is a
      # time: of a clock that was set back, or of this very second, where a file would be lost.
      started = len(list(events.iterdir()))
      self._events = EventsWriter(str(events / f"events.{started:06}"))
      self._event(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """One row: step, split ("train" or "eval") and the values that are finite."""
    if self._file is None:
      return
    row = {name: value for name, value in values.items() if math.isfinite(value)}
    scalars = [Summary.Value(tag=f"{split}/{k}", simple_value=v) for k, v in row.items()]
    with writing(self._path):
      self._file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
      self._event(step, summary=Summary(value=scalars))

  def close(self) -> None:
    if self._file is not None:
      with writing(self._path):
        self._file.close()
        self._events.close()

  def _event(self, step: int, **content: Any) -> None:
    self._events.write_event(Event(wall_time=time.time(), step=step, **content))
    self._events.flush()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
  """The rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
  if not path.exists():
    return
  with path.open() as lines:
    for line in lines:
      try:
        yield json.loads(line)
      except json.JSONDecodeError:
        return


def curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
  """`split/metric` to (steps, values)."""
  series: dict[str, tuple[list[int], list[float]]] = {}
  for row in read_metrics(path):
    for name in row.keys() - {"step", "split"}:
      steps, values = series.setdefault(f"{row['split']}/{name}", ([], []))
      steps.append(row["step"])
      values.append(row[name])
  return series
