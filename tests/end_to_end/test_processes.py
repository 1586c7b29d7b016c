"""Two real processes train what one process trains on the same mesh."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import StandardCheckpointer

from kdjax.signals import Cache
from tests import xla
from tests.end_to_end.text import text_folder

ROOT = Path(__file__).parents[2]
SMALL = {
  "teacher.model.depth": 1,
  "teacher.model.width": 16,
  "teacher.train.total_steps": 60,
  "total_steps": 60,
  "batch_size": 64,
  "checkpoint.every": 30,
  "mesh.data": 2,
  "mesh.fsdp": 2,
}


def start(workdir: Path, devices: int, **environment: str):
  command = [sys.executable, "-m", "launch.train", "--config=configs/digits_kd.py"]
  command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in SMALL.items())]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices)} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture
def text(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("localhost", 0))
    return one.getsockname()[1]


def test_two_processes_give_what_one_gives(tmp_path):
  alone = start(tmp_path / "one", devices=4)
  assert alone.wait(timeout=300) == 0, alone.stdout.read()
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  pair = [start(tmp_path / "two", devices=2, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
  said = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  assert "student_distilled" in said[0] and "report:" not in said[1]
  one, two = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two"))
  assert one["device"].startswith("4 x") and two["device"].startswith("4 x")
  for row in ("teacher", "student_distilled"):
    for name in ("nll", "brier"):
      # Sums over processes are taken in another order: equal to rounding.
      assert two["results"][row][name] == pytest.approx(one["results"][row][name], rel=1e-3)


FOLLOW = """
import json, sys
from pathlib import Path
import jax
from kdjax import models, teachers
from kdjax.train.stage import train
from launch.processes import join_processes
from tests.end_to_end.text import config_of

join_processes()
text, workdir = map(Path, sys.argv[1:])
config = config_of(
  text, mesh__data=2, total_steps=3, data__validation_fraction=0.2,
  data__weights={"counts": 0.9, "letters": 0.1},
  domain_weights={"name": "ddk", "every": 1, "rows": 4},
)
model = models.decoder(num_classes=259, width=8, depth=1, heads=1)
teacher = teachers.frozen(model, model.init(jax.random.key(0)))
result, _ = train(config, workdir, teacher, name="student")
print(json.dumps({"nll": result.evaluation["nll"]}))
"""


def run_script(script: str, text: Path, parent: Path, name: str, devices: int, **environment: str):
  """A Python script as a process of its own: `SCRIPT TEXT PARENT/NAME`."""
  return subprocess.Popen(
    [sys.executable, "-c", script, text, parent / name],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(devices)} | environment,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_two_processes_follow_the_domains_as_one_does(tmp_path, text):
  follow = functools.partial(run_script, FOLLOW, text, tmp_path)
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  started = [follow("two", 1, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
  started += [follow("one", 2)]
  said = [process.communicate(timeout=600)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0, 0], said
  nll = [json.loads(each.splitlines()[-1])["nll"] for each in said]
  weights = {}
  for name in ("one", "two"):
    meta = tmp_path / name / "checkpoints" / "3" / "meta" / "metadata"
    weights[name] = json.loads(meta.read_text())["data"]["stream"]["weights"]
  assert [start for start, _ in weights["one"]] == [0, 8, 16]
  for (_, one), (_, two) in zip(*weights.values(), strict=True):
    assert two == pytest.approx(one, rel=1e-3)
  # Hosts with mixtures of their own would have made batches of other rows.
  assert nll[0] == nll[1] == pytest.approx(nll[2], rel=1e-3)


LANGUAGE_MODEL = """
import json, sys
from pathlib import Path
from kdjax.data import pipeline
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.job import run_job
from launch.processes import join_processes
from tests.end_to_end.text import config_of

join_processes()
text, workdir = map(Path, sys.argv[1:])
read, ordered = set(), pipeline._TrainingBatches._ordered

def noted(self, rows):
  read.update(map(int, rows))
  return ordered(self, rows)

pipeline._TrainingBatches._ordered = noted
config = config_of(
  text, mesh__data=2, mesh__fsdp=2, total_steps=4, eval__every=4, checkpoint__every=4,
  samples__prompts=[],
)
config["teacher"]["train"]["total_steps"] = 4
run_job(config, workdir)
read = sorted(row for row in read if row < 4 * config["batch_size"])  # and none read ahead
config["teacher"]["checkpoint"] = str(workdir / "teacher")
session = open_session(config, CacheOptions(kind="hidden", dtype="float32", rows_per_shard=4))
cache_teacher(session, workdir / "cache")
source = session.source
keys = [key.hex() for row in range(len(source.rows)) for key, *_ in source.rows.spans(row)]
print(json.dumps({"read": read, "keys": keys}))
"""


def weights(folder: Path):
  """What was saved on other devices, here on one."""
  one, reading = SingleDeviceSharding(jax.devices()[0]), StandardCheckpointer()
  return reading.restore(
    folder,
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
      reading.metadata(folder).item_metadata.tree,
    ),
  )


def test_four_processes_train_and_store_what_one_does_and_each_reads_its_rows(tmp_path, text):
  begin = functools.partial(run_script, LANGUAGE_MODEL, text, tmp_path)
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "4"}
  started = [begin("one", 4)]
  started += [begin("four", 1, JAX_PROCESS_ID=str(i), **cluster) for i in range(4)]
  said = [process.communicate(timeout=600)[0] for process in started]
  assert [process.returncode for process in started] == [0] * 5, said
  alone, *each = (json.loads(words.splitlines()[-1]) for words in said)
  for folder in ("checkpoints", "teacher/checkpoints"):
    one, four = (weights(tmp_path / name / folder / "4" / "params") for name in ("one", "four"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, four)
  rows = [set(process["read"]) for process in each]
  assert set.union(*rows) == set(alone["read"]) and sum(map(len, rows)) == len(alone["read"])
  keys = [bytes.fromhex(key) for key in alone["keys"]]
  one, four = (Cache(tmp_path / name / "cache").read(keys) for name in ("one", "four"))
  for own, wanted in zip(four, one, strict=True):
    np.testing.assert_allclose(own["hidden"], wanted["hidden"], atol=1e-4)


def test_half_a_cluster_is_told(tmp_path):
  process = start(tmp_path, devices=1, JAX_COORDINATOR_ADDRESS="localhost:1")
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 2
  assert "JAX_NUM_PROCESSES" in said and "Traceback" not in said
