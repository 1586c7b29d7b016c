"""How long processes of one job wait for a sign of life from one another."""

import threading

import jax
import pytest
from jax.errors import JaxRuntimeError

from kdjax.errors import KdjaxError
from kdjax.train.lost import is_lost
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


CLOSED = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1"


@pytest.mark.parametrize(
  ("error", "count", "lost"),
  [
    (JaxRuntimeError(CLOSED), 2, True),
    (ValueError(CLOSED), 2, True),  # as a save tells it
    (JaxRuntimeError("UNAVAILABLE: another task died"), 2, True),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, False),
    (OSError("Connection refused"), 2, False),
    (JaxRuntimeError(CLOSED), 1, False),
  ],
)
def test_what_tells_of_a_lost_process(error, count, lost, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: count)
  assert is_lost(error) is lost


class Left(BaseException):
  pass


@pytest.mark.parametrize(
  ("error", "status", "said"),
  [
    (JaxRuntimeError(CLOSED), 2, "error: process 0 of 2 has lost another one (UNKNOWN: Gloo all"),
    (SystemExit(3), 3, ""),  # which has been told
    (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
  ],
)
def test_one_of_several_does_not_wait_for_the_others(error, status, said, monkeypatch, capsys):
  def leave(found):
    raise Left(found)

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax.distributed, "shutdown", threading.Event().wait)  # nobody says goodbye
  monkeypatch.setattr(processes, "GOODBYE_S", 0.1)
  monkeypatch.setattr(processes.os, "_exit", leave)
  with pytest.raises(Left) as left, processes.one_of_several():
    raise error
  assert left.value.args == (status,)
  found = capsys.readouterr().err
  assert said in found and ("Traceback" in found) == (status == 1)
