"""What small sharded programs send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.plan.collectives import Collective, _groups, by_kind, collectives
from kdjax.train.mesh import BATCH, make_mesh

LAYERS, WIDTH, ROWS = 3, 64, 64
MATRIX = WIDTH * WIDTH * 4


def gradient(ws, x):
  def loss(ws):
    return (jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0] ** 2).mean()

  return jax.grad(loss)(ws)


def sent(mesh, spec):
  ws, x = (jax.ShapeDtypeStruct((*n, WIDTH), jnp.float32) for n in ((LAYERS, WIDTH), (ROWS,)))
  weights = NamedSharding(mesh, spec)
  rows = NamedSharding(mesh, PartitionSpec(BATCH))
  jitted = jax.jit(gradient, in_shardings=(weights, rows), out_shardings=weights)
  return collectives(jitted.lower(ws, x).compile().as_text(), mesh)


def test_split_weights_are_gathered_layer_by_layer_and_gradients_scattered():
  found = sent(make_mesh(data=4, fsdp=2), PartitionSpec(None, "fsdp"))
  assert by_kind(found) == {
    ("all-gather", ("fsdp",)): 2 * LAYERS * MATRIX,  # forwards and backwards
    ("reduce-scatter", ("fsdp",)): LAYERS * MATRIX,
    ("all-reduce", ("data",)): LAYERS * MATRIX // 2,  # the slice that is left
  }
  assert all(each.times == LAYERS for each in found)


def test_repeated_weights_reduce_the_gradient():
  found = by_kind(sent(make_mesh(data=8), PartitionSpec()))
  assert found == {("all-reduce", ("data",)): LAYERS * MATRIX}


def test_one_device_sends_nothing():
  assert sent(make_mesh(data=1), PartitionSpec()) == []


def test_bytes_of_a_ring():
  each = Collective("all-reduce", ("data",), 4, times=3, bytes=100)
  assert each.sent == 3 * 2 * 75
  assert each._replace(kind="all-gather").sent == 3 * 75
  assert each._replace(kind="collective-permute").sent == 300


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
  ],
)
def test_groups_in_every_form(text, groups):
  assert np.array_equal(_groups(f"{text}, to_apply=%add", 4), groups)
