"""Plans by the compiler for TPUs, which needs none; test_tpu.py runs it in a process of its own."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.plan.chips import CHIPS
from kdjax.plan.collectives import by_kind
from kdjax.plan.compilers import devices_of, slice_of
from kdjax.plan.plan import lay_out, plan
from kdjax.plan.side import compile_or_tell
from kdjax.train.mesh import make_mesh
from tests.plan.test_collectives import LAYERS, MATRIX, sent
from tests.plan.test_plan import DATA, config

# JAX stores these programs but cannot read them back.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
LIBRARY = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"


@pytest.fixture
def library(monkeypatch):
  if not LIBRARY.exists():
    pytest.skip("no libtpu in the environment; `make test` installs it where there is one")
  monkeypatch.setenv("TPU_LIBRARY_PATH", str(LIBRARY))


@pytest.fixture
def slice_of_8(library):
  return devices_of("tpu", "v5e", 8)


def test_split_weights_travel_in_bfloat16_while_others_are_multiplied(slice_of_8):
  mesh = make_mesh(data=4, fsdp=2, devices=slice_of_8)
  found = sent(mesh, PartitionSpec(None, "fsdp"))
  assert by_kind(found) == {
    ("all-gather", ("fsdp",)): 2 * LAYERS * MATRIX // 2,  # halves: products are in bfloat16
    ("reduce-scatter", ("fsdp",)): LAYERS * MATRIX,
    ("all-reduce", ("data",)): LAYERS * MATRIX // 2,
  }
  assert all(each.times == LAYERS for each in found)


def test_a_step_of_distillation_is_planned(slice_of_8):
  step = lay_out(config(), DATA, slice_of_8)
  assert step.mesh.devices.flat[0].platform == "tpu"
  assert step.batch["image"].shape[0] == 64  # of two hosts together
  found = plan(step, CHIPS["v5e"])
  parameters = 4 * (64 * 32 + 32 + 32 * 10 + 10)
  assert found.memory["parameters"] == parameters
  assert found.total == sum(found.memory.values()) > parameters
  assert by_kind(found.collectives)["all-reduce", ("data",)] >= parameters
  assert found.flops == plan(lay_out(config(), DATA), CHIPS["v5e"]).flops


def test_a_program_that_is_too_large_is_told(slice_of_8):
  wide = jax.ShapeDtypeStruct((80_000, 80_000), jnp.float32, sharding=None)
  mesh = make_mesh(data=1, devices=slice_of_8)
  whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
  lowered = jax.jit(lambda x: jnp.sort(x @ x, 0).sum(), in_shardings=whole).lower(wide)
  with pytest.raises(KdjaxError, match=r"the step does not fit: .*HBM.*batch_size"):
    compile_or_tell(lowered)


@pytest.mark.parametrize(
  ("chip", "count", "name"),
  [
    ("v5e", 1, ("v5e:1x1", 1)),
    ("v5e", 8, ("v5e:2x4", 1)),
    ("v6e", 256, ("v6e:16x16", 1)),
    ("v5e", 1024, ("v5e:16x16", 4)),
    ("v5p", 4, ("v5p:2x2x1", 1)),
    ("v5p", 16, ("v5p:2x2x4", 1)),
    ("v5p", 512, ("v5p:8x8x8", 1)),
  ],
)
def test_libtpu_has_the_slices_that_are_named(library, chip, count, name):
  assert slice_of(chip, count) == name
  assert len(devices_of("tpu", chip, count)) == count
