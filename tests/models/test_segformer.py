"""SegFormer beside its parity: example, what moves, precision, a mesh, early refusals."""

import doctest
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models import ModelVars, segformer
from kdjax.train.mesh import TEACHER_RULES, make_mesh, shardings

SHAPE = (16, 16, 1)
GIVEN = {"num_classes": 3, "image_shape": SHAPE, "widths": (4, 8), "depths": (1, 1)}
GIVEN |= {"heads": (1, 2), "reductions": (2, 1), "stride": 2, "decoder_width": 8}
TAPS = frozenset({"logits", "hidden", "head", "features"})


@pytest.fixture(scope="module")
def made():
  model = segformer(**GIVEN)
  image = jax.random.normal(jax.random.key(1), (8, *SHAPE))
  return model, model.init(jax.random.key(0)), {"image": image}


def test_example():
  result = doctest.testmod(sys.modules[segformer.__module__])
  assert result.attempted > 0 and result.failed == 0


def test_outputs_axes_and_gradients(made):
  model, variables, batch = made
  ranks = jax.tree.map(len, model.axes(), is_leaf=lambda x: isinstance(x, PartitionSpec))
  assert ranks == jax.tree.map(jnp.ndim, variables)

  @jax.jit
  def run(params):
    def loss(params):
      own = ModelVars(params, variables.state)
      out, state = model.apply(own, batch, taps=TAPS, train=True)
      return jnp.square(out.logits).sum(), (out, state)

    return jax.grad(loss, has_aux=True)(params)

  grad, (out, state) = run(variables.params)
  assert out.logits.shape == (8, 64, 3)
  np.testing.assert_allclose(out.head.logits(out.hidden), out.logits, atol=1e-5)
  maps = {name: x.shape[1:] for name, x in out.features.items()}
  assert maps == {
    "embed1": (8, 8, 4),
    "stage1": (8, 8, 4),
    "embed2": (4, 4, 8),
    "stage2": (4, 4, 8),
  }
  still = {
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path(grad)
    if not np.abs(x).max() > 1e-9
  }
  assert all("'key'" in name and "bias" in name for name in still), still
  assert not np.array_equal(state["fuse_norm"]["norm"]["mean"], np.zeros(8))


def test_half_precision_is_near_and_a_mesh_changes_nothing(made):
  model, variables, batch = made
  whole = jax.jit(lambda v: model.apply(v, batch)[0].logits)(variables)
  half = segformer(**GIVEN, dtype="bfloat16")
  out = jax.jit(lambda v: half.apply(v, batch)[0].logits)(variables)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, whole, atol=0.1)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(variables, shardings(variables, model.axes(), TEACHER_RULES, mesh))
  split = jax.jit(lambda v: model.apply(v, batch)[0].logits)(placed)
  np.testing.assert_allclose(split, whole, atol=1e-5)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"image_shape": (18, 16, 1)}, "multiples of 4"),
    ({"heads": (1, 3)}, r"heads\[1\]"),
    ({"reductions": (2,)}, "a list of integers, one for each stage"),
    ({"drop_path": 1.0}, "drop_path"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  with pytest.raises(KdjaxError, match=message):
    segformer(**GIVEN | changed)
