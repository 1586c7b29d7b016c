"""The gradient of a table of embeddings on meshes: its value, and how it travels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.models.partial_sums import in_slices
from kdjax.models.transformer.language_model import rows_and_table, rows_of
from kdjax.plan.collectives import by_kind, collectives
from kdjax.train.memory import jit_on
from kdjax.train.mesh import BATCH, make_mesh

VOCAB, WIDTH, ROWS, TIME = 48, 16, 8, 12
BYTES = 4 * VOCAB * WIDTH
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TIME), np.int32)
COTANGENT = np.random.default_rng(1).normal(size=(ROWS, TIME, WIDTH)).astype(np.float32)
TABLE = np.random.default_rng(2).normal(size=(VOCAB, WIDTH)).astype(np.float32)


def tied(table, tokens, cotangent):
  """With a head of the same table, which the gradient also comes from."""

  def loss(table):
    rows, table = rows_and_table(table, tokens)
    return (rows * cotangent).sum() + jnp.square(table).sum()

  return jax.grad(loss)(table)


def own(table, tokens, cotangent):
  return jax.grad(lambda table: (rows_of(table, tokens) * cotangent).sum())(table)


def compiled(function, sizes, rows=ROWS, dtype=jnp.float32):
  mesh = make_mesh(**{"data": 1} | sizes)
  table = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
  batch = NamedSharding(mesh, PartitionSpec(BATCH, "sequence") if rows == ROWS else PartitionSpec())
  step = jit_on(mesh, function, in_shardings=(table, batch, batch), out_shardings=table)
  given = (TABLE.astype(dtype), TOKENS[:rows], COTANGENT[:rows].astype(dtype))
  return step.lower(*given).compile(), mesh, given


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [ROWS, 3], ids=["divided", "not divided"])
@pytest.mark.parametrize(
  "sizes",
  [{}, {"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "sequence": 2}, {"data": 8}],
  ids=str,
)
@pytest.mark.parametrize("function", [tied, own])
def test_it_is_that_of_one_device(function, sizes, rows, dtype):
  step, _, given = compiled(function, sizes, rows, dtype)
  found = step(*given)
  table, tokens, cotangent = (np.asarray(x, np.float32) for x in given)
  wanted = 2 * table if function is tied else np.zeros_like(table)
  np.add.at(wanted, tokens.astype(np.int32), cotangent)
  assert found.dtype == dtype
  tolerance = 1e-5 if dtype == jnp.float32 else 5e-2  # bfloat16 sums of some five values
  np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("function", [tied, own])
def test_slices_alone_travel_over_all_devices(function):
  step, mesh, _ = compiled(function, {"data": 4, "fsdp": 2})
  found = by_kind(collectives(step.as_text(), mesh))
  assert found["reduce-scatter", ("fsdp",)] == BYTES
  assert found["all-reduce", ("data",)] == BYTES // 2
  assert not any({"data", "fsdp"} <= set(axes) for _, axes in found)


def test_whole_weights_have_no_slices():
  """XLA's own sum is then as good, and needs no second array."""
  found = []

  def ask(x):
    found.append(in_slices())
    return x

  for sizes in ({"data": 1}, {"data": 8}, {"data": 4, "fsdp": 2}):
    jit_on(make_mesh(**sizes), ask).lower(1.0)
  assert found == [False, False, True]
