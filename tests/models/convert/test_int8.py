"""Weights that are rounded to int8 while they are read."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.adapters import low_rank, quantize_params
from kdjax.models.convert import Checkpoint, load_weights, open_checkpoint
from kdjax.models.pretrained import pretrained
from kdjax.train.mesh import TEACHER_RULES, make_mesh, shardings
from kdjax.train.pretrained import build_teacher
from tests.models.convert.folders import FOLDER, opened

KERNEL = ("stack", "blocks", "mlp", "up", "kernel")


def at(variables, path=KERNEL):
  node = variables.params
  for part in path:
    node = node[part]
  return node


def equal(given, wanted):
  assert jax.tree.structure(given) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_a_teacher_on_eight_devices_is_rounded_as_it_is_read_and_bit_for_bit_the_same(monkeypatch):
  config = {
    "teacher": {
      "kind": "frozen",
      "dtype": "int8",
      "model": {"name": "pretrained", "path": str(FOLDER / "llama")},
      "rules": {},
      "checkpoint": "",
    },
    "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
  }
  data = types.SimpleNamespace(name="text", num_classes=96)
  shapes = build_teacher(config, data, abstract=True)
  wanted = quantize_params(pretrained(path=str(FOLDER / "llama")).start().params)
  # What would round it afterwards.
  monkeypatch.setattr(sys.modules["kdjax.teachers.frozen"], "quantize_params", None)
  teacher = build_teacher(config, data)
  given = teacher.frozen
  equal(given.params, wanted)
  assert jax.tree.structure((given, teacher.axes)) == jax.tree.structure(
    (shapes.frozen, shapes.axes)
  )
  placed = shardings(given, teacher.axes, TEACHER_RULES, make_mesh(**config["mesh"]))
  for array, sharding in zip(jax.tree.leaves(given), jax.tree.leaves(placed), strict=True):
    assert sharding.is_equivalent_to(array.sharding, array.ndim)
  assert at(given).values.addressable_shards[0].data.size == at(given).values.size // 8


def test_no_stack_ever_exists_in_float32():
  """Of the arrays that are alive whenever a tensor is read."""
  source = open_checkpoint(FOLDER / "llama")
  model = opened("llama")[1]
  shapes = jax.eval_shape(model.init, jax.random.key(0)).params
  kernels = {
    leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if "blocks" in str(path) and "kernel" in str(path)
  }
  before: set[int] = set()
  seen: list[tuple[int, int]] = []  # float32 stacks of kernels, bytes of all

  @dataclasses.dataclass(frozen=True)
  class Watched(Checkpoint):
    def read(self, name):
      new = [a for a in jax.live_arrays() if id(a) not in before]
      stacks = [a for a in new if a.shape in kernels and a.dtype == jnp.float32]
      seen.append((len(stacks), sum(a.nbytes for a in new)))
      return super().read(name)

  watched = Watched(source.path, source.config, source.tensors)

  def load(dtype):
    before.clear()
    before.update(map(id, jax.live_arrays()))
    seen.clear()
    variables = load_weights(watched, model, dtype=dtype)
    return max(s for s, _ in seen), max(b for _, b in seen), variables

  stacks, most, variables = load("int8")
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  assert stacks == 0 and most <= whole + max(np.prod(shape[1:]) * 4 for shape in kernels)
  del variables
  assert load(None)[0] == 7  # what is counted: query, key, value, out, gate, up and down


def test_weights_under_an_adapter_are_not_rounded():
  with pytest.raises(KdjaxError, match="under an adapter cannot be in int8"):
    low_rank(pretrained(path=str(FOLDER / "llama"))).start(None, "int8")
