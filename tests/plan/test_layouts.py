"""What a transformer as teacher and as student sends in each layout, apart from one another."""

import jax
import jax.numpy as jnp
import pytest

from kdjax import models, teachers
from kdjax.plan.collectives import collectives
from kdjax.plan.plan import shard_bytes
from kdjax.train.memory import jit_on
from kdjax.train.mesh import STUDENT_RULES, TEACHER_RULES, batch_sharding, make_mesh, shardings

LAYOUTS = ({"data": 8}, {"data": 4, "fsdp": 2}, {"data": 1, "fsdp": 8}, {"data": 2, "tensor": 4})
MODEL = models.vit(
  num_classes=10, image_shape=(8, 8, 1), patch=4, width=64, depth=3, heads=4, mlp_ratio=2
)
BATCH = {"image": jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32)}
WEIGHTS = jax.eval_shape(MODEL.init, jax.random.key(0))


def sent(function, weights, axes, rules, sizes):
  """(collectives, bytes of all weights, bytes of those on one device) of function(weights, batch).

  What the function returns is asked for in the layout of the weights, where it has their form, or
  in that of a batch.
  """
  mesh = make_mesh(**sizes)
  placed, rows = shardings(weights, axes, rules, mesh), batch_sharding(mesh)
  out = placed if isinstance(jax.eval_shape(function, weights, BATCH), dict) else rows
  jitted = jit_on(mesh, function, in_shardings=(placed, rows), out_shardings=out)
  found = collectives(jitted.lower(weights, BATCH).compile().as_text(), mesh)
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights))
  return found, whole, shard_bytes(weights, placed)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_no_teacher_is_gathered_at_once(sizes):
  teacher = teachers.frozen(MODEL, WEIGHTS)

  def logits(frozen, batch):
    return teacher.apply(frozen, (), batch, taps=frozenset({"logits"})).logits

  found, whole, own = sent(logits, teacher.frozen, teacher.axes, TEACHER_RULES, sizes)
  gathered = [each.bytes for each in found if each.kind == "all-gather"]
  assert max(gathered, default=0) < whole / 10
  kinds = {(each.kind, *each.axes) for each in found}
  if sizes == {"data": 8}:
    assert not found and own == whole
  elif "tensor" in sizes:  # attention and MLP end with a sum over the split axis, in each layer
    assert kinds == {("all-reduce", "tensor")} and own < 0.4 * whole
    assert sum(each.times for each in found) == 2 * 3
  else:
    assert ("all-gather", "fsdp") in kinds and own < 1.2 * whole / sizes["fsdp"]
    assert kinds == {("all-gather", "fsdp")}  # weights come together, activations never do


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_gradients_of_a_student_are_reduced_over_its_data(sizes):
  def gradient(params, batch):
    def loss(params):
      outputs, _ = MODEL.apply(
        WEIGHTS._replace(params=params), batch, train=False, rng=None, taps=frozenset({"logits"})
      )
      return (outputs.logits**2).mean()

    return jax.grad(loss)(params)

  axes = MODEL.axes().params
  found, whole, own = sent(gradient, WEIGHTS.params, axes, STUDENT_RULES, sizes)
  reduced = sum(
    each.bytes * each.times
    for each in found
    if each.kind in ("all-reduce", "reduce-scatter") and "data" in each.axes
  )
  if sizes["data"] > 1:
    assert own * 0.95 < reduced < own * 1.3, (reduced, own)
  assert max((e.bytes for e in found if e.kind == "all-gather"), default=0) < whole / 10
  kept = sum(each.bytes * each.times for each in found if each.axes == ("fsdp",))
  assert (kept > 0) == ("fsdp" in sizes)
