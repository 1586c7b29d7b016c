"""Several processes: started on this machine for real, elsewhere by the commands printed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
import yaml

from kdjax.train.job import run_job
from launch.pods import local
from tests import xla
from tests.end_to_end.helpers import SELF, steps, tiny
from tests.faults import runs

ROOT = Path(__file__).parents[1]
PODS = ROOT / "launch" / "pods"


def start(*arguments, flags=("--processes=2",)):
  command = [sys.executable, "-m", "launch.pods.local", *flags, "--", *map(str, arguments)]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": xla.flags()},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """What two processes leave, and what one does on the same mesh: (folder, its report)."""
  folder = tmp_path_factory.mktemp("undisturbed")
  pair = start(f"--config={SELF}", f"--workdir={folder / 'two'}", "--config.mesh.data=2")
  with jax.numpy_dtype_promotion("standard"):  # as under optimisers everywhere (see conftest.py)
    alone = run_job(tiny({"mesh.data": 2}), folder / "one")
  said, _ = pair.communicate(timeout=120)
  assert pair.returncode == 0, said
  assert said.count("report: ") == 1 and re.search(r"^\[0\] report: ", said, re.MULTILINE)
  assert {line[:4] for line in said.splitlines()} == {"[0] ", "[1] "}
  return folder / "two", alone


def report(folder):
  return json.loads((folder / "report.json").read_text())


def test_two_processes_of_this_machine_train_what_one_does(undisturbed):
  folder, alone = undisturbed
  together = report(folder)
  for row in ("teacher", "student_distilled"):
    nll = alone["results"][row]["nll"]
    assert together["results"][row]["nll"] == pytest.approx(nll, rel=1e-3)


def test_one_killed_inside_a_save_ends_both_and_costs_no_bit(undisturbed, tmp_path):
  job = (f"--config={SELF}", f"--workdir={tmp_path}", "--config.mesh.data=2")
  pair, lines = start(*job), []
  reader = threading.Thread(target=lambda: lines.extend(pair.stdout))
  reader.start()
  runs.wait_for(lambda: runs.saving(tmp_path, 8), pair)
  runs.kill(runs.children(pair)[1])
  began = time.monotonic()
  status = pair.wait(timeout=60)
  # Its end is seen by the loss of its connection, or else after the ten seconds of launch.pods.
  assert time.monotonic() - began < 30
  reader.join()
  said = "".join(lines)
  assert status == 128 + signal.SIGKILL, said
  assert "process 1 ended by SIGKILL; the others are stopped\n" in said
  assert re.search(r"^process 1 ended by SIGKILL\. .* the same command goes on", lines[-1]), said
  assert not (tmp_path / "report.json").exists()
  left = steps(tmp_path)
  assert left in ([4], [4, 8]), said
  again = start(*job)
  said, _ = again.communicate(timeout=120)
  assert again.returncode == 0, said
  # The newest that is finished is whole; what was being written is nobody's.
  assert f"student_distilled: resumed at step {left[-1]} of 12" in said and "damaged" not in said
  whole = undisturbed[0]
  assert [report(tmp_path)[k] for k in runs.SAME] == [report(whole)[k] for k in runs.SAME]
  for part in ("", "teacher"):
    assert runs.rows(tmp_path / part) == runs.rows(whole / part)


def test_a_signal_between_teacher_and_student_stops_all_of_them_after_the_same_step(tmp_path):
  pair = start(
    f"--config={SELF}",
    f"--workdir={tmp_path}",
    "--config.mesh.data=2",
    "--config.teacher.train.total_steps=30",
    "--config.total_steps=100000",
  )
  before = []
  for line in pair.stdout:
    before.append(line)
    if "teacher: done in" in line:  # the student's step is compiled next
      break
  pair.send_signal(signal.SIGTERM)
  try:
    said = "".join(before) + pair.communicate(timeout=60)[0]
  except subprocess.TimeoutExpired:
    pair.send_signal(signal.SIGTERM)  # the second ends them at once
    raise
  assert pair.returncode == 0, said
  told = re.findall(r"^\[(.)\] (.*) and stopped", said, re.MULTILINE)
  assert sorted(number for number, _ in told) == ["0", "1"], said
  # Heard before the student began, or after one of its first steps; by both alike.
  if {done for _, done in told} != {"did not begin student_distilled"}:
    (step,) = {re.match(r"saved step (\d+) to ", done)[1] for _, done in told}
    assert int(step) == steps(tmp_path)[-1] < 20


@pytest.fixture
def handlers():
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


SLEEP = [sys.executable, "-c", "print('here'); import time; time.sleep(60)"]


def test_one_that_fails_ends_the_others(handlers, capsys):
  began = time.monotonic()
  fails = [sys.executable, "-c", "import sys; print('no'); sys.exit(3)"]
  assert local.run([SLEEP, fails, SLEEP]) == 3
  assert time.monotonic() - began < 20
  said = capsys.readouterr().out
  assert "[1] no\n" in said
  assert "process 1 ended with status 3; the others are stopped" in said


def test_one_that_does_not_heed_is_killed(handlers, monkeypatch):
  monkeypatch.setattr(local, "GRACE_S", 0.2)
  deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
  killed = "import os, time; time.sleep(1); os.kill(os.getpid(), 9)"
  each = [[sys.executable, "-c", code] for code in (deaf, killed)]
  assert local.run(each) == 128 + signal.SIGKILL


def test_the_commands_are_printed():
  pair = start(
    "--config=a.py", "--config.student.hidden=(8,)", flags=("--processes=3", "--dry_run")
  )
  said, _ = pair.communicate(timeout=60)
  lines = said.splitlines()
  assert pair.returncode == 0 and len(lines) == 3
  for i, line in enumerate(lines):
    assert line.startswith("JAX_PLATFORMS=cpu ") and "-m launch.train --config=a.py" in line
    assert "'--config.student.hidden=(8,)'" in line and line.endswith(
      f"--processes=3 --process={i}"
    )


def shell(name, *arguments, **environment):
  return subprocess.run(
    ["bash", PODS / name, *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=30,
  )


def test_shellcheck_finds_nothing_in_the_scripts():
  scripts = [*sorted(PODS.glob("*.sh")), ROOT / ".ci" / "run"]
  assert len(scripts) == 3
  check = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run([check, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_slurm_runs_one_process_a_gpu():
  done = shell("slurm.sh", "--config=a.py", "--workdir=/shared/my run", DRY_RUN="1")
  assert done.returncode == 0, done.stderr
  train = "python -m launch.train --config=a.py --workdir=/shared/my\\ run"
  assert done.stdout == f"srun --kill-on-bad-exit=1 {train}\n"
  told = dict(
    re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (PODS / "slurm.sh").read_text(), re.MULTILINE)
  )
  assert told["gpus-per-node"] == told["ntasks-per-node"]
  assert shell("slurm.sh", DRY_RUN="1").returncode == 2


def test_a_tpu_vm_is_told_on_all_its_workers():
  flags = ["--name=pod", "--zone=us-east5-a", "--project=mine", "--dry_run"]
  train = ["--config=configs/a.py", "--config.student.hidden=(8,)"]
  done = shell("tpu_vm.sh", *flags, "--", *train)
  assert done.returncode == 0, done.stderr
  copy, run = done.stdout.splitlines()
  for line, command in ((copy, "scp"), (run, "ssh")):
    assert line.startswith(f"gcloud compute tpus tpu-vm {command} ")
    assert "--zone=us-east5-a --worker=all --project=mine" in line
  assert "launch.train" in run and "--coordinator=detect" in run and "--config=configs/a.py" in run
  assert shell("tpu_vm.sh", *flags, "--", *train, DRY_RUN="1").stdout == done.stdout


@pytest.mark.parametrize("flags", [[], ["--name=pod"], ["--name=pod", "--zone=z", "--nmae=x"]])
def test_a_tpu_vm_wants_its_flags(flags):
  done = shell("tpu_vm.sh", *flags, "--", "--config=a.py", DRY_RUN="1")
  assert done.returncode == 2 and done.stdout == "" and "error: " in done.stderr


def test_a_job_set_has_a_pod_for_each_host():
  manifest = yaml.safe_load((PODS / "gke_jobset.yaml").read_text())
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["completions"] == spec["parallelism"] > 1 and spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  selector = pod["nodeSelector"]
  (container,) = pod["containers"]
  x, y = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert x * y == chips * spec["completions"]
  assert "launch.train" in container["command"] and pod["restartPolicy"] == "Never"
