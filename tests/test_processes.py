"""How long processes of one job wait for a sign of life from one another."""

import jax
import pytest

from kdjax.errors import KdjaxError
from launch import processes
from tests.end_to_end.helpers import SELF, launch


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
def test_a_time_out_of_range_is_told_before_anything_else(seconds):
  with pytest.raises(KdjaxError, match=rf"--heartbeat_timeout_s = {seconds} must be from 1 to"):
    processes.join_processes("host:1", None, None, heartbeat_s=seconds)


def test_jax_is_told_the_time(monkeypatch):
  told = {}
  monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.update(given))
  processes.join_processes("localhost:1", 2, 0, heartbeat_s=7)
  assert told["heartbeat_timeout_seconds"] == 7 and told["process_id"] == 0


def test_no_number_is_one_error():
  done = launch("train", f"--config={SELF}", "--workdir=nowhere", "--heartbeat_timeout_s=soon")
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert done.stderr.startswith("error: ") and "--heartbeat_timeout_s=soon" in done.stderr
