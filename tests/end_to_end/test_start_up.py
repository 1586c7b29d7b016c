"""Processes of one job find each other, or say within their time why not."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdjax.errors import KdjaxError
from launch import processes
from launch.processes import join_processes

ROOT = Path(__file__).parents[2]
# An entry point that only joins: it says which process it is of how many.
JOIN = """
import jax
from launch import main
def job(config, stop):
  print(jax.process_index(), jax.process_count())
main.run(job, required=[], needs_config=False)
"""
CLUSTERS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_", "TPU_")


def start(*flags: str, **environment: str):
  clean = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTERS)}
  return subprocess.Popen(
    [sys.executable, "-c", JOIN, *flags],
    cwd=ROOT,
    env=clean | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ends(*started) -> list[tuple[int, str, str]]:
  """(status, stdout, stderr) of each."""
  said = [process.communicate(timeout=60) for process in started]
  return [(process.returncode, *each) for process, each in zip(started, said, strict=True)]


def free_port(ports=(0,)) -> int:
  for port in ports:
    try:
      with socket.socket() as one:
        one.bind(("", port))
        return one.getsockname()[1]
    except OSError:
      continue
  raise OSError("no port is free")


def test_flags_go_before_the_environment():
  three = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
  other = {"JAX_COORDINATOR_ADDRESS": "nowhere:1", "SLURM_NTASKS": "9", "SLURM_STEP_ID": "0"}
  done = ends(*(start(*three, f"--process={i}", **other) for i in range(2)))
  assert [each[:2] for each in done] == [(0, "0 2\n"), (0, "1 2\n")], done


def test_a_step_of_slurm_is_found():
  # jax takes the port from the number of the job.
  job = free_port(range(61440, 65536)) - 61440
  step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
  step |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
  done = ends(*(start(**step, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)))
  assert [each[:2] for each in done] == [(0, "0 2\n"), (0, "1 2\n")], done


def test_those_who_do_not_come_are_given_up():
  def given_up(process: int, port: int):
    flags = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}"]
    return start(*flags, "--coordinator_timeout_s=1")

  nobody = free_port()
  with socket.create_server(("localhost", 0)) as silent:  # it answers, but never as a coordinator
    began = time.monotonic()
    unreachable, unanswered = given_up(1, nobody), given_up(1, silent.getsockname()[1])
    done = ends(unreachable, unanswered, given_up(0, free_port()))
  assert time.monotonic() - began < 30
  assert [status for status, *_ in done] == [2, 2, 2], done
  for _, _, said in done:
    assert re.findall("^error: ", said, re.MULTILINE) == ["error: "] and "Traceback" not in said
  assert f"process 1 of 2: nobody answers at --coordinator=localhost:{nobody} within" in done[0][2]
  assert "process 1 of 2" in done[1][2] and "not all processes have joined within" in done[1][2]
  assert "process 0 of 2" in done[2][2] and "not all processes have joined within" in done[2][2]


def test_a_port_that_is_taken_is_told():
  with socket.socket(socket.AF_INET6) as taken:
    taken.bind(("::", 0))
    taken.listen()
    where = f"localhost:{taken.getsockname()[1]}"
    one = start(f"--coordinator={where}", "--processes=2", "--process=0")
    ((status, _, said),) = ends(one)
  assert status == 2 and f"--coordinator={where}" in said and "port free" in said, said


@pytest.mark.parametrize(
  ("given", "told"),
  [
    (("host:1", None, None), "must be set together"),
    ((None, 2, 0), "must be set together"),
    (("host:1", 0, 0), "--processes must be at least 1"),
    (("host:1", 2, 2), "--process must be from 0 to 1 of 2"),
    (("host:1", 2, -1), "--process must be from 0 to 1 of 2"),
    (("host", 2, 0), "--coordinator must be host:port"),
    (("host:0", 2, 0), "with a port from 1 to 65535"),
    (("http://host:80", 2, 0), "--coordinator must be host:port"),
    (("detect", 2, 0), "--coordinator must be host:port"),
  ],
)
def test_what_is_malformed_is_told_at_once(given, told):
  with pytest.raises(KdjaxError, match=told):
    join_processes(*given)
  with pytest.raises(KdjaxError, match="coordinator_timeout_s"):
    join_processes(*given, timeout_s=0)


def test_malformed_variables_are_told_by_their_names(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
  with pytest.raises(KdjaxError, match="JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"):
    join_processes()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  with pytest.raises(KdjaxError, match="to numbers"):
    join_processes()


@pytest.mark.parametrize(
  ("environment", "found"),
  [
    ({}, None),
    ({"SLURM_NTASKS": "4"}, None),  # a batch script outside any step
    ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, None),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "SLURM_NTASKS=4"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES=a,b"),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES=2"),
  ],
)
def test_what_speaks_of_several_processes(monkeypatch, environment, found):
  asked = []
  monkeypatch.setattr(processes, "_initialize", lambda source, *_: asked.append(source))
  for name in [name for name in os.environ if name.startswith((*CLUSTERS, "MEGASCALE"))]:
    monkeypatch.delenv(name)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  join_processes()
  assert asked == ([] if found is None else [found])


def test_a_slice_without_its_tpu_is_told():
  ((status, _, said),) = ends(start(TPU_WORKER_HOSTNAMES="a,b"))
  assert status == 2 and "TPU_WORKER_HOSTNAMES=a,b" in said and "--coordinator" in said
  assert said.count("\n") == 1, said
