"""Each kind of fault, done once or a few times to the job of `tests.faults.bench`."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import deaths, records, runs
from tests.faults.bench import (
  EVERY,
  LAST,
  MISSED,
  Bench,
  Found,
  checkpoints,
  errors,
  kill,
  last_line,
  newest,
  seen,
)

# What a clock of Python's says in a process that finds this file: another day at each look.
JUMPING = """
import itertools, time
_real, _looks, _days = time.time, itertools.count(), (0, 3, -5, 400, -300, 1)
time.time = lambda: _real() + 86400.0 * _days[next(_looks) % len(_days)]
time.time_ns = lambda: int(time.time() * 1e9)
"""


def damaged(bench: Bench, most: int, *, how: Callable[[Bench, Path], None]) -> Found:
  """The newest of the checkpoints of a killed run is damaged."""
  workdir = bench.half()
  step = newest(workdir)
  how(bench, workdir / "checkpoints" / str(step))
  before = checkpoints(workdir)
  before.pop(f"checkpoints/{step}")
  found = bench.compare(workdir, before)
  aside = list((workdir / "checkpoints").glob("damaged-*"))
  found.outcome = f"{'the one before is used' if aside else 'read all the same'}, {found.outcome}"
  return found


def truncated(bench: Bench, step: Path) -> None:
  for file in _files(step):
    os.truncate(file, file.stat().st_size // 2)


def flipped(bench: Bench, step: Path) -> None:
  """One bit of one file."""
  file = bench.rng.choice([file for file in _files(step) if file.stat().st_size])
  content = bytearray(file.read_bytes())
  content[bench.rng.integers(len(content))] ^= 1 << bench.rng.integers(8)
  file.write_bytes(content)


def half_deleted(bench: Bench, step: Path) -> None:
  files = _files(step)
  for number in bench.rng.permutation(len(files))[: (len(files) + 1) // 2]:
    files[number].unlink()


def disk_full(bench: Bench, most: int) -> Found:
  """A small disk that something else fills."""
  with _disk(bench) as disk:
    if disk is None:
      return Found("not tried: this user may not mount a file system", 0)
    workdir, process = bench.begun(disk / "run")
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
      while True:
        file.write(b"x" * 4096)
    status, said = process.wait(timeout=300), bench.said(workdir)
    before = checkpoints(workdir)
    (disk / "filler").unlink()
    if not status:
      return MISSED
    return _after_error(bench, workdir, before, (status, said))


def read_only(bench: Bench, most: int) -> Found:
  """The folder of a killed run cannot be written to for a while."""
  with _disk(bench) as disk:
    if disk is None:
      return Found("not tried: this user may not mount a file system", 0)
    half = bench.half()
    workdir = shutil.copytree(half, disk / "run")
    shutil.copy(bench.beside(half, "seen"), bench.beside(workdir, "seen"))
    _mount("-o", "remount,ro", str(disk))
    status = bench.start(workdir).wait(timeout=300)
    _mount("-o", "remount,rw", str(disk))
    return _after_error(bench, workdir, checkpoints(half), (status, bench.said(workdir)))


def clock(bench: Bench, most: int) -> Found:
  """The clock on the wall shows another day whenever somebody looks."""
  folder = bench.root / "clock"
  folder.mkdir(exist_ok=True)
  (folder / "sitecustomize.py").write_text(JUMPING)
  jumping = ("env", f"PYTHONPATH={folder}{os.pathsep}{runs.ROOT}")
  workdir, process = bench.begun(prefix=jumping)
  if process.poll() is not None:
    return MISSED
  kill(process)
  return bench.compare(workdir, checkpoints(workdir), whole=bench.whole(), prefix=jumping)


def vanished(bench: Bench, most: int) -> Found:
  """A file of the data that is not open yet is moved away, and later put back."""
  data = bench.root / "data"
  if not data.exists():
    records.write_records(data)
  workdir = bench.workdir()
  own = shutil.copytree(data, bench.beside(workdir, "data"))
  process = bench.start(workdir, data=own)
  if not bench.await_(process, (workdir / "teacher" / "checkpoints" / "6").is_dir):
    return MISSED
  (own / records.LATE).rename(own / "gone")
  status, said, before = process.wait(timeout=300), bench.said(workdir), checkpoints(workdir)
  if not status:
    return MISSED
  (own / "gone").rename(own / records.LATE)
  named = records.LATE in said.splitlines()[-1]
  end = (status if named else -1, said)
  return _after_error(bench, workdir, before, end, whole=bench.whole(data=str(data)), data=own)


def not_finite(bench: Bench, most: int, *, way: str) -> Found:
  """A batch whose loss is infinite."""
  whole = seen(bench.beside(bench.whole(), "seen"))
  step = int(bench.rng.integers(EVERY + 1, LAST - 1))
  workdir = bench.workdir()
  report = bench.finish(workdir, poison=whole[step][0], on_nonfinite=way)
  if report is None or report["step"] != LAST:
    return Found(f"failed: {last_line(bench.said(workdir))}")
  saved = {f"checkpoints/{each}" for each in range(EVERY, LAST + 1, EVERY)}
  lost = len(saved - set(checkpoints(workdir)))
  if way == "skip":
    skipped = sum(row.get("skipped", 0) > 0 for row in runs.rows(workdir))
    return Found(f"left out {skipped} step, ran to the end", 1, skipped * records.BATCH, lost)
  # Step by step the examples are others from there on; those of the batches gone past are missing.
  found = seen(bench.beside(workdir, "seen"))
  gone = {i for index in whole.values() for i in index} - {i for x in found.values() for i in x}
  past = sum(bool(gone & set(index)) for index in whole.values())
  expected = step + 1 - step // EVERY * EVERY
  told = "went back past the batches since the last checkpoint, ran to the end"
  return Found(told if past == expected else f"left out {past} batches", 1, len(gone), lost)


FAULTS: dict[str, tuple[str, Callable[[Bench, int], Found]]] = {
  "sigkill": ("SIGKILL at a random moment", functools.partial(deaths.sigkill, inside=False)),
  "sigkill_in_save": ("SIGKILL inside a save", functools.partial(deaths.sigkill, inside=True)),
  "sigterm": ("SIGTERM", deaths.sigterm),
  "one_of_two": ("one process of two killed", functools.partial(deaths.one_of_two, inside=False)),
  "one_of_two_in_save": (
    "one process of two killed inside a save",
    functools.partial(deaths.one_of_two, inside=True),
  ),
  "truncated": ("newest checkpoint truncated", functools.partial(damaged, how=truncated)),
  "flipped": ("a bit of the newest checkpoint flipped", functools.partial(damaged, how=flipped)),
  "half_deleted": (
    "half of the newest checkpoint deleted",
    functools.partial(damaged, how=half_deleted),
  ),
  "disk_full": ("disk full", disk_full),
  "clock": ("clock jumps by days", clock),
  "read_only": ("folder not writable at a restart", read_only),
  "vanished": ("a data file vanishes", vanished),
  "nan_skip": ("loss not finite, `skip`", functools.partial(not_finite, way="skip")),
  "nan_roll_back": ("loss not finite, `roll_back`", functools.partial(not_finite, way="roll_back")),
  "two_runs": ("a second run in the folder", deaths.two_runs),
  "mesh": ("killed, another mesh", deaths.other_mesh),
  "processes": ("killed, another number of processes", deaths.other_processes),
}


def _after_error(bench, workdir, before, end, **options) -> Found:
  """Compares a run that has ended with an error, and whose remedy has been done."""
  status, said = end
  if status != 2 or errors(said) != 1:
    return Found(f"unclear end (status {status}): {last_line(said)}")
  found = bench.compare(workdir, before, **options)
  found.outcome = f"one message, {found.outcome}"
  return found


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())


def _mount(*arguments: str) -> bool:
  found = shutil.which("mount")
  return bool(found) and not subprocess.run([found, *arguments], capture_output=True).returncode


@contextlib.contextmanager
def _disk(bench: Bench) -> Iterator[Path | None]:
  """A file system of 32 MB in memory; None where this user may not mount one."""
  folder = bench.workdir()
  folder.mkdir()
  if not _mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)):
    yield None
    return
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)
