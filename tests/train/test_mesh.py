"""Meshes and shardings: sizes, fallbacks, which rows are a process's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.train.mesh import (
  STUDENT_RULES,
  batch_sharding,
  check_batch,
  data_shard,
  make_mesh,
  place,
  shardings,
)


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    ({}, (8, 1, 1, 1)),
    ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 1, 2)),
    ({"data": 1}, (1, 1, 1, 1)),  # fewer than there are: the first devices
    ({"data": 1, "tensor": 4}, (1, 1, 1, 4)),
    ({"data": 2, "sequence": 4}, (2, 1, 4, 1)),
  ],
)
def test_minus_one_fills_what_is_left(sizes, shape):
  assert tuple(make_mesh(**sizes).shape.values()) == shape


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"data": 16}, "needs 16 devices, but 8 are there"),
    ({"data": -1, "fsdp": -1}, "at most one may be -1"),
    ({"data": 0}, "every size must be positive"),
    ({"data": 4, "fsdp": 4}, "needs 16 devices"),
  ],
)
def test_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(KdjaxError, match=message):
    make_mesh(**sizes)


def test_rules_give_each_axis_its_mesh_axis_and_odd_sizes_are_repeated():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  shapes = {
    "even": jax.ShapeDtypeStruct((4, 6), jnp.float32),
    "odd": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    "twice": jax.ShapeDtypeStruct((4, 4), jnp.float32),
    "scalar": jax.ShapeDtypeStruct((), jnp.float32),
  }
  axes = {
    "even": PartitionSpec("embed", "mlp"),
    "odd": PartitionSpec("embed", "mlp"),
    "twice": PartitionSpec("mlp", "heads"),  # one mesh axis cannot split two dimensions
    "scalar": PartitionSpec(),
  }
  found = shardings(shapes, axes, STUDENT_RULES, mesh)
  wanted = {
    "even": PartitionSpec("fsdp", "tensor"),
    "odd": PartitionSpec("fsdp", None),
    "twice": PartitionSpec("tensor", None),
    "scalar": PartitionSpec(),
  }
  assert {name: sharding.spec for name, sharding in found.items()} == wanted


def test_rows_of_a_batch_are_spread_over_data_and_fsdp():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = place({"x": jnp.arange(8.0)}, batch_sharding(mesh))["x"]
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}
  assert data_shard(batch_sharding(mesh), 8) == (0, 1)  # one process reads all rows
  assert isinstance(placed.sharding, NamedSharding)


def test_a_batch_must_divide():
  mesh = make_mesh(data=4, fsdp=2)
  check_batch(16, mesh)
  with pytest.raises(KdjaxError, match=r"batch_size = 12 is not divisible by the 8 .* = 4 x 2"):
    check_batch(12, mesh)
