"""A checkpoint of which one process of two cannot read its part is left by both of them."""

import os
import socket
import subprocess
import sys

from tests import xla
from tests.faults import runs

# Each process holds half of an array that is large enough for a file of its own.
RESTORE = """
import os, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from typing import Any, NamedTuple
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.mesh import make_mesh
from launch.processes import join_processes

class State(NamedTuple):
  params: Any

join_processes()
folder, shape = Path(sys.argv[1]), (512, 512)
split = NamedSharding(make_mesh(data=1, fsdp=2), PartitionSpec("fsdp"))
kernel = jax.jit(lambda: jnp.arange(512.0 * 512).reshape(shape), out_shardings=split)()
checkpoints = Checkpoints(folder)
for step in (1, 2):
  checkpoints.save(step, State({"kernel": kernel * step}), {}, None)
checkpoints.close()
if jax.process_index() == 0:
  own = [f for f in (folder / "2" / "params" / "ocdbt.process_1").rglob("*") if f.is_file()]
  large = max(own, key=lambda f: f.stat().st_size)
  os.truncate(large, large.stat().st_size // 2)
multihost_utils.sync_global_devices("damaged")
checkpoints = Checkpoints(folder)
wanted = {"params": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
found = checkpoints.restore(wanted, {"params": {"kernel": split}})
right = jnp.array_equal(found.items["params"]["kernel"], kernel)
print(found.step, bool(right), checkpoints.steps())
"""


def test_all_go_on_from_the_one_before(tmp_path):
  with socket.socket() as one:
    one.bind(("localhost", 0))
    port = one.getsockname()[1]
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
  cluster |= {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", RESTORE, tmp_path / "run"],
      cwd=runs.ROOT,
      env=os.environ | cluster | {"XLA_FLAGS": xla.flags(), "JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=120) for process in pair]
  assert [process.returncode for process in pair] == [0, 0], said
  assert [out.splitlines()[-1] for out, _ in said] == ["1 True [1]"] * 2, said
  assert "another process cannot read its part" in said[0][1]
