"""launch.cache_teacher as a user runs it: killed, run again, with two processes, verified."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from kdjax.signals import Cache
from kdjax.train.job import prepare_teacher
from tests import xla
from tests.end_to_end.helpers import ROOT, SELF, launch, tiny
from tests.end_to_end.test_processes import free_port
from tests.signals.helpers import files


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  """Flags of a config with a trained teacher."""
  folder = tmp_path_factory.mktemp("taught")
  with jax.numpy_dtype_promotion("standard"):
    prepare_teacher(tiny(), folder, stop=lambda: False)
  return [
    f"--config={SELF}",
    f"--config.teacher.checkpoint={folder / 'teacher'}",
    "--config.eval.batch_size=8",
    "--rows_per_shard=100",
    "--num_samples=20",
  ]


def start(flags, out, devices=1, **environment):
  return subprocess.Popen(
    [sys.executable, "-m", "launch.cache_teacher", *flags, f"--out={out}"],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices)} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
  out = tmp_path_factory.mktemp("whole")
  done = launch("cache_teacher", *flags, f"--out={out}", "--verify")
  assert done.returncode == 0, done.stderr
  assert "1200 examples, 1200 positions" in done.stdout
  assert "equal_draws 1," in done.stdout
  return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_halfway_and_run_again(flags, whole, number, tmp_path):
  process = start(flags, tmp_path)
  deadline = time.monotonic() + 60
  while len(list(tmp_path.glob("*.array_record"))) < 3:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  said, _ = process.communicate(timeout=60)
  if number == signal.SIGTERM:
    assert process.returncode == 0
    assert "kept the finished shards" in said and "run the same command to go on" in said
  assert not (tmp_path / "manifest.json").exists()
  done = launch("cache_teacher", *flags, f"--out={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert files(tmp_path) == files(whole)


def test_two_processes_write_what_one_writes(flags, whole, tmp_path):
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  more = [*flags, "--config.mesh.data=2", "--verify"]
  pair = [start(more, tmp_path, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
  said = [process.communicate(timeout=120)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  assert "equal_draws 1," in said[0] and "equal_draws" not in said[1]
  assert Cache(tmp_path).manifest == Cache(whole).manifest
  assert files(tmp_path) == files(whole)


def test_another_teacher_is_one_message(flags, whole):
  done = launch("cache_teacher", *flags, f"--out={whole}", "--num_samples=30")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "holds another cache: support: saved 20, now 30" in done.stderr
