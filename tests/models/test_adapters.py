"""Low-rank changes of frozen weights, and weights in int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teachers
from kdjax.errors import KdjaxError
from kdjax.models.adapters import low_rank, quantize_params
from kdjax.models.expressions import LowRank, Quantized, quantize
from kdjax.models.pretrained import decoder, pretrained
from kdjax.train.mesh import TEACHER_RULES, make_mesh, shardings
from tests.models.convert.folders import FOLDER

BASE = pretrained(path=str(FOLDER / "llama"))
WEIGHTS = BASE.start()
BATCH = {"tokens": jnp.arange(24).reshape(2, 12)}


def logits_of(model, variables):
  return jax.jit(lambda v: model.apply(v, BATCH)[0].logits)(variables)


PLAIN = logits_of(BASE, WEIGHTS)


def moved(variables, by=0.05):
  return variables._replace(params=jax.tree.map(lambda x: x + by, variables.params))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_begins_as_its_model_and_merges_into_one(dora):
  model = low_rank(BASE, rank=2, dora=dora)
  start = model.start()
  np.testing.assert_allclose(logits_of(model, start), PLAIN, atol=1e-5)
  after = moved(start)
  given = logits_of(model, after)
  assert np.abs(given - PLAIN).max() > 0.1
  merged = jax.jit(model.merged)(after)
  assert jax.tree.structure(merged.params) == jax.tree.structure(WEIGHTS.params)
  np.testing.assert_allclose(logits_of(BASE, merged), given, atol=5e-5)


def test_the_merged_weight_is_base_plus_the_scaled_product():
  down, up = jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 0.0]])
  change = LowRank(jnp.eye(2), down, up, None, scale=0.5)
  # 0.5 * [[1], [2]] @ [[3, 0]] = [[1.5, 0], [3, 0]]
  np.testing.assert_allclose(change.dense(), [[2.5, 0.0], [3.0, 1.0]])
  lengths = LowRank(jnp.eye(2), down, up, jnp.array([2.0, 2.0]), scale=0.5)
  np.testing.assert_allclose(jnp.linalg.norm(lengths.dense(), axis=0), [2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_only_the_adapters_get_a_gradient_and_all_of_them_do(dora):
  model = low_rank(BASE, rank=2, targets=("query", "out"), dora=dora)
  variables = moved(model.start())

  def loss(params, frozen):
    own = variables._replace(params=params, frozen=frozen)
    return (model.apply(own, BATCH)[0].logits ** 2).mean()

  own, base = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables.params, variables.frozen)
  assert len(jax.tree.leaves(own)) == (6 if dora else 4)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))
  assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(base))


def test_the_gradient_agrees_with_finite_differences():
  model = low_rank(BASE, rank=2, targets=("up",))
  variables = moved(model.start())

  @jax.jit
  def loss(shift):
    up = jax.tree.map(lambda x: x + shift, variables.params)
    out = model.apply(variables._replace(params=up), BATCH)[0].logits
    return jax.nn.log_softmax(out)[..., 3].mean()

  step = 1e-2
  wanted = (loss(step) - loss(-step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(loss)(0.0), wanted, rtol=2e-2)


def test_int8_is_off_by_at_most_half_a_step():
  weight = jax.random.normal(jax.random.key(0), (3, 8, 2, 5))
  rounded = quantize(weight, inputs=1)
  assert rounded.values.dtype == jnp.int8 and rounded.scale.shape == (3, 1, 2, 5)
  largest = np.abs(weight).max(1, keepdims=True)
  assert (np.abs(rounded.dense() - weight) <= largest / 254 * 1.001).all()
  np.testing.assert_allclose(np.abs(rounded.dense()).max(1, keepdims=True), largest, rtol=1e-6)
  zeros = quantize(jnp.zeros((1, 2, 2)), inputs=1)
  np.testing.assert_array_equal(zeros.dense(), 0)


def test_a_teacher_in_int8_is_near_itself_and_a_quarter_as_large():
  teacher = teachers.frozen(BASE, WEIGHTS, dtype="int8")
  told = jax.jit(lambda f: teacher.apply(f, (), BATCH, taps=frozenset({"logits"})).logits)
  logits = told(teacher.frozen)
  assert 0 < np.abs(logits - PLAIN).max() < 0.1 * np.abs(PLAIN).max()
  blocks = teacher.frozen.params["stack"]["blocks"]
  assert isinstance(blocks["mlp"]["up"]["kernel"], Quantized)
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
  assert size(blocks) < 0.4 * size(WEIGHTS.params["stack"]["blocks"])  # small heads: large scales


def test_int8_weights_lie_on_the_mesh_like_the_others():
  teacher = teachers.frozen(BASE, WEIGHTS, dtype="int8")
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = shardings(teacher.frozen, teacher.axes, TEACHER_RULES, mesh)
  kernel = placed.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
  plain = shardings(WEIGHTS, BASE.axes(), TEACHER_RULES, mesh)
  assert kernel.values.spec == plain.params["stack"]["blocks"]["mlp"]["up"]["kernel"].spec
  on_mesh = jax.device_put(teacher.frozen, placed)
  run = jax.jit(lambda f: teacher.apply(f, (), BATCH, taps=frozenset({"logits"})).logits)
  given = run(on_mesh)
  alone = run(teacher.frozen)
  np.testing.assert_allclose(given, alone, atol=1e-4)


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (lambda: low_rank(BASE, rank=0), "rank = 0"),
    (lambda: low_rank(BASE, targets=("gates",)), r"targets = \['gates'\] do not exist"),
    (
      lambda: low_rank(decoder(num_classes=8, width=8, depth=1, heads=1)),
      "an adapter needs weights to adapt",
    ),
    (
      lambda: pretrained(path=str(FOLDER / "llama"), adapter={"ranks": 2}),
      "adapter.ranks does not exist.*'rank'",
    ),
    (lambda: quantize_params({"head": {"kernel": jnp.ones((2, 2))}}), "int8 are for transformers"),
  ],
)
def test_what_does_not_fit_is_told(make, told):
  with pytest.raises(KdjaxError, match=told):
    make()
