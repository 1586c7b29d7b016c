"""The job that faults are done to, what an undisturbed one leaves, and how the two compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests import xla
from tests.faults import records, runs
from tests.faults.job import EVERY

JOB = "tests/faults/job.py"
LAST = records.STEPS
SAME = "the same bits"
ROUNDING = "values equal to rounding"


@dataclasses.dataclass
class Found:
  """What came of one fault.

  Attributes:
    outcome: in a few words.
    injected: how many of the fault it took.
    examples: lost or repeated.
    checkpoints: finished ones that were lost; those that the fault itself damages do not count.
  """

  outcome: str
  injected: int = 1
  examples: int = 0
  checkpoints: int = 0


MISSED = Found("came too late", 0)


@dataclasses.dataclass
class Bench:
  """A folder for runs. Every method that starts something waits at most minutes for it."""

  root: Path
  rng: np.random.Generator
  number: int = 0
  kept: dict = dataclasses.field(default_factory=dict)

  def workdir(self) -> Path:
    """A new one."""
    self.number += 1
    return self.root / f"run-{self.number}"

  def start(
    self, workdir: Path, *, processes=1, devices=1, data="", prefix=(), poison="", **fields
  ):
    """The job as a process; what it says goes to WORKDIR.log."""
    if processes == 1:
      command = ["-m", "launch.train"]
    else:
      command = ["-m", "launch.pods.local", f"--processes={processes}", "--"]
    fields = {"mesh.data": processes} | fields
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": xla.flags(devices),
      "JAX_COMPILATION_CACHE_DIR": str(self.root / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "KDJAX_SEEN": str(self.beside(workdir, "seen")),
    }
    environment |= {"KDJAX_POISON": str(poison)} if poison != "" else {}
    return subprocess.Popen(
      [*prefix, sys.executable, *command, f"--config={JOB}{data and f':{data}'}"]
      + [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())],
      cwd=runs.ROOT,
      env=environment,
      stdout=self.beside(workdir, "log").open("a"),
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )

  def beside(self, workdir: Path, kind: str) -> Path:
    """A file that is no part of the run."""
    return (
      self.root / f"{workdir.name if workdir.parent == self.root else workdir.parent.name}.{kind}"
    )

  def said(self, workdir: Path) -> str:
    return self.beside(workdir, "log").read_text(errors="replace")

  def finish(self, workdir: Path, **options) -> dict | None:
    """Runs the same command to its end; the report, None where it failed."""
    if self.start(workdir, **options).wait(timeout=600):
      return None
    return json.loads((workdir / "report.json").read_text())

  def whole(self, **options) -> Path:
    """The folder of an undisturbed run."""
    name = json.dumps({"processes": 1, "data": ""} | options, sort_keys=True)
    if name not in self.kept:
      workdir = self.workdir()
      assert self.finish(workdir, **options), self.said(workdir)
      self.kept[name] = workdir
    return self.kept[name]

  def half(self) -> Path:
    """A copy of a run that was killed halfway."""
    if "half" not in self.kept:
      workdir = self.workdir()
      process = self.start(workdir)
      self.await_(process, lambda: newest(workdir) >= LAST // 2)
      kill(process)
      self.kept["half"] = workdir
    copy = self.workdir()
    shutil.copy(self.beside(self.kept["half"], "seen"), self.beside(copy, "seen"))
    return shutil.copytree(self.kept["half"], copy)

  def begun(self, workdir: Path | None = None, **options) -> tuple[Path, subprocess.Popen]:
    """A run that has made some checkpoints, at a random moment after one."""
    workdir = workdir or self.workdir()
    process = self.start(workdir, **options)
    at = EVERY * int(self.rng.integers(0, 5))
    self.await_(process, lambda: newest(workdir) > at)
    time.sleep(self.rng.uniform(0, 0.05))
    return workdir, process

  def await_(self, process, ready) -> bool:
    """Waits for something of a run; False where that ended before."""
    deadline = time.monotonic() + 300
    while not ready():
      if process.poll() is not None or time.monotonic() > deadline:
        return False
      time.sleep(0.001)
    return True

  def compare(self, workdir: Path, before: dict, *, injected=1, whole=None, **options) -> Found:
    """Runs the same command to its end and holds what it leaves against an undisturbed run.

    Args:
      workdir: of the run that was disturbed.
      before: its finished checkpoints then, from `checkpoints`.
      injected: how many faults it had.
      whole: the undisturbed run; of one process, or of as many as `options` say.
      options: of `start`.
    """
    report = self.finish(workdir, **options)
    lost = sum(checkpoints(workdir).get(step) != digest for step, digest in before.items())
    if report is None:
      return Found(f"failed: {last_line(self.said(workdir))}", injected, 0, lost)
    whole = whole or self.whole(processes=options.get("processes", 1), data=options.get("data", ""))
    wanted = json.loads((whole / "report.json").read_text())
    return Found(
      f"went on to {likeness(workdir, report, whole, wanted)}",
      injected,
      examples(seen(self.beside(workdir, "seen")), seen(self.beside(whole, "seen"))),
      lost,
    )


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> int:
  """Sends a signal to a process and waits for its end."""
  if process.poll() is None:
    process.send_signal(number)
  return process.wait(timeout=120)


def checkpoints(workdir: Path) -> dict[str, str]:
  """Each finished checkpoint of teacher and student, with a hash of all its files."""
  found = {}
  for step in _steps(workdir):
    if step.name.isdigit():
      digest = hashlib.sha256()
      for file in sorted(path for path in step.rglob("*") if path.is_file()):
        digest.update(file.relative_to(step).as_posix().encode() + file.read_bytes())
      found[step.relative_to(workdir).as_posix()] = digest.hexdigest()
  return found


def _steps(workdir: Path) -> list[Path]:
  """Folders of finished and unfinished checkpoints."""
  folders = (workdir / "teacher" / "checkpoints", workdir / "checkpoints")
  return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())


def newest(workdir: Path) -> int:
  """Step of the newest finished checkpoint of the student; 0 without any."""
  folder = workdir / "checkpoints"
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return max((int(name) for name in names if name.isdigit()), default=0)


def unfinished(workdir: Path) -> list[Path]:
  """Checkpoints that are being written, or that a kill has left so."""
  return [path for path in _steps(workdir) if "tmp" in path.name]


def seen(path: Path) -> dict[int, list[int]]:
  """Step to the examples that it was given last: those that its weights come from."""
  lines = path.read_text().splitlines() if path.is_file() else []
  return {step: sorted(index) for step, index in map(json.loads, lines)}


def examples(found: dict[int, list[int]], wanted: dict[int, list[int]]) -> int:
  """How many examples steps got that they should not, or did not get that they should."""
  return sum(
    len(set(found.get(step, [])) ^ set(wanted.get(step, []))) for step in {*found, *wanted}
  )


def likeness(workdir: Path, report: dict, whole: Path, wanted: dict) -> str:
  """How near two finished runs are."""
  parts = ("", "teacher")
  rows = [runs.rows(workdir / part) == runs.rows(whole / part) for part in parts]
  if all(rows) and all(report[name] == wanted[name] for name in runs.SAME):
    return SAME
  if report["params_sha256"] == wanted["params_sha256"]:
    return "the same weights, but other rows of metrics"
  pairs = zip(runs.rows(workdir), runs.rows(whole), strict=False)
  near = len(runs.rows(workdir)) == len(runs.rows(whole)) and all(
    ours.keys() == theirs.keys()
    and all(np.isclose(ours[k], theirs[k], rtol=1e-2, atol=1e-2) for k in ours if "loss" in k)
    for ours, theirs in pairs
  )
  return ROUNDING if near else "ANOTHER RESULT"


def last_line(said: str) -> str:
  """The last error in what a run said, without what changes from run to run."""
  errors = [line for line in said.splitlines() if "error: " in line]
  return (errors or said.splitlines() or ["nothing was said"])[-1][:160]


def errors(said: str) -> int:
  """Messages of the kind that every program ends with; -1 where there is a traceback, too."""
  return -1 if "Traceback" in said else sum(" error: " in f" {line}" for line in said.splitlines())
