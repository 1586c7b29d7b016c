"""A clock on the wall that jumps by days changes no number, ends no save and opens no lock."""

import itertools
import os
import time

import pytest

from kdjax.errors import KdjaxError
from kdjax.train.job import run_job
from kdjax.train.lock import FILE, in_use
from kdjax.train.loop import Interrupted
from kdjax.train.metrics import MetricLog
from tests.end_to_end.helpers import steps, tiny
from tests.faults import runs

DAY = 86_400.0


@pytest.fixture
def jumping(monkeypatch):
  """From here on each look at the clock finds another day, now later and now earlier."""
  real, looked = time.time, itertools.count()
  days = (0, 3, -5, 400, -300, 1)

  def jump():
    return real() + DAY * days[next(looked) % len(days)]

  def start():
    monkeypatch.setattr(time, "time", jump)
    monkeypatch.setattr(time, "time_ns", lambda: int(jump() * 1e9))
    return looked

  return start


def test_a_run_ends_in_the_same_bits(jumping, tmp_path):
  alone = {"teacher": {}, "objective": {"name": "cross_entropy"}}
  whole = run_job(tiny(alone), tmp_path / "whole")
  looked, asked, workdir = jumping(), itertools.count(), tmp_path / "run"
  with pytest.raises(Interrupted):
    run_job(tiny(alone), workdir, stop=lambda: next(asked) == 7)
  # What is newest goes by steps: files of any day are found and gone on with.
  for file in workdir.rglob("*"):
    os.utime(file, (time.time(), time.time()))
  report = run_job(tiny(alone), workdir)
  assert next(looked) > 100  # the saves look, if nobody else does
  assert {k: report[k] for k in runs.SAME} == {k: whole[k] for k in runs.SAME}
  assert runs.rows(workdir) == runs.rows(tmp_path / "whole")
  assert steps(workdir) == steps(tmp_path / "whole")
  assert 0 < report["seconds"] < 1000


def test_a_lock_has_no_age(jumping, tmp_path):
  jumping()
  with in_use(tmp_path):
    for when in (0.0, time.time() + 1000 * DAY):
      os.utime(tmp_path / FILE, (when, when))
      with pytest.raises(KdjaxError, match="is in use by another run"), in_use(tmp_path):
        pass
  assert not (tmp_path / FILE).exists()


def test_each_start_has_a_file_of_events_of_its_own(monkeypatch, tmp_path):
  for second in (2e9, 2e9, 1e9):
    monkeypatch.setattr(time, "time", lambda second=second: second)
    log = MetricLog(tmp_path, resume_step=0, write=True)
    log.write(1, "train", {"loss": 1.0})
    log.close()
  names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
  assert [name.split(".")[1] for name in names] == ["000000", "000001", "000002"]
