"""Two runs in one folder: the second refuses; what a killed one leaves is in nobody's way."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kdjax.errors import KdjaxError
from kdjax.train.lock import FILE, in_use
from tests.faults import runs

HOLD = "import sys, time; from pathlib import Path; from kdjax.train.lock import in_use\n"
HOLD += "with in_use(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path / "run")],
    stdout=subprocess.PIPE,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=runs.ROOT,
    text=True,
  )
  assert process.stdout.readline().strip() == "held"
  yield process
  process.kill()
  process.wait()


def test_the_second_is_told_who_holds_the_folder(holder, tmp_path):
  with pytest.raises(KdjaxError) as caught, in_use(tmp_path / "run"):
    pass
  for part in (str(tmp_path / "run"), f"process {holder.pid} on", "another --workdir"):
    assert part in str(caught.value)
  assert holder.poll() is None


def test_a_killed_holder_is_in_nobodys_way(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / "run" / FILE).exists()
  with in_use(tmp_path / "run"):
    assert str(os.getpid()) in (tmp_path / "run" / FILE).read_text()
  assert not (tmp_path / "run" / FILE).exists()


def test_a_folder_in_which_nothing_happened_is_removed(tmp_path):
  with in_use(tmp_path / "new"):
    pass
  assert not (tmp_path / "new").exists()
  with in_use(tmp_path / "new"):
    (tmp_path / "new" / "file").write_text("")
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_second_command_refuses_and_the_first_ends_as_it_would(holder, tmp_path):
  second = runs.start(tmp_path / "run")
  said, _ = second.communicate(timeout=120)
  assert second.returncode == 2
  (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
  assert f"is in use by another run: process {holder.pid}" in line
  assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
  holder.kill()
  holder.wait()
  time.sleep(0.1)
  first = runs.start(tmp_path / "run", **{"total_steps": 60})
  said, _ = first.communicate(timeout=300)
  assert first.returncode == 0, said
  assert not (tmp_path / "run" / FILE).exists()
