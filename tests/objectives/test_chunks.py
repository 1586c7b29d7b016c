"""Sums in chunks: value, every gradient, weights, devices, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import losses
from kdjax.objectives.chunks import chunked_sum, sum_chunks
from kdjax.objectives.tokens import map_logits
from kdjax.objectives.unembedding import BLOCK, pull_back, scale
from kdjax.outputs import Head, Outputs
from kdjax.plan.collectives import by_kind, collectives
from kdjax.train.memory import jit_on
from kdjax.train.mesh import make_mesh

BATCH, TIME, WIDTH, VOCAB = 4, 7, 6, 11


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


HIDDEN, KERNEL, SCALE = draw(0, BATCH, TIME, WIDTH), draw(1, WIDTH, VOCAB), draw(2, VOCAB)
TOLD = draw(3, BATCH, TIME, VOCAB)
WHERE = jax.random.bernoulli(jax.random.key(4), 0.7, (BATCH, TIME))
WEIGHTS = jnp.where(WHERE, jax.random.uniform(jax.random.key(5), (BATCH, TIME)), 0.0)


def values_of(hidden, told, where, kernel, scale):
  """A loss with a head and parameters of its own, which the functions below close over."""
  logits = jnp.matmul(hidden, kernel) * jnp.broadcast_to(scale, (*hidden.shape[:-1], VOCAB))
  return losses.forward_kl(logits, told, where=where), {"sure": jax.nn.softmax(logits).max(-1)}


def chunked(hidden, kernel, scale, told, weights, size):
  total, metrics = chunked_sum(
    lambda h, t, w: values_of(h, t, w, kernel, scale), hidden, told, WHERE, weights, size
  )
  return total, metrics["sure"]


def plain(hidden, kernel, scale, told, weights):
  values, metrics = values_of(hidden, told, WHERE, kernel, scale)
  return (values * weights).sum(), (metrics["sure"] * weights).sum()


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_value_and_every_gradient_are_those_of_the_plain_sum(size):
  def of(fn, *more):
    return jax.jit(
      jax.value_and_grad(lambda *a: fn(*a, TOLD, WEIGHTS, *more), argnums=(0, 1, 2), has_aux=True)
    )(HIDDEN, KERNEL, SCALE)

  (value, sure), grad = of(chunked, size)
  (wanted, wanted_sure), wanted_grad = of(plain)
  np.testing.assert_allclose([value, sure], [wanted, wanted_sure], rtol=1e-5)
  for given, own in zip(grad, wanted_grad, strict=True):
    np.testing.assert_allclose(given, own, atol=2e-6)
    assert np.abs(own).max() > 1e-2


def test_neither_weights_nor_the_fixed_side_get_a_gradient():
  told, weights = jax.grad(lambda t, w: chunked(HIDDEN, KERNEL, SCALE, t, w, 3)[0], argnums=(0, 1))(
    TOLD, WEIGHTS
  )
  np.testing.assert_array_equal(told, 0)
  np.testing.assert_array_equal(weights, 0)


def test_a_gradient_may_be_scaled_and_mapped():
  def loss(kernel, factor):
    return factor * chunked(HIDDEN, kernel, SCALE, TOLD, WEIGHTS, 3)[0]

  kernels = jnp.stack([KERNEL, 2 * KERNEL])
  mapped = jax.vmap(jax.grad(loss), in_axes=(0, None))(kernels, 3.0)
  for given, kernel in zip(mapped, kernels, strict=True):
    wanted = 3 * jax.grad(lambda k: plain(HIDDEN, k, SCALE, TOLD, WEIGHTS)[0])(kernel)
    np.testing.assert_allclose(given, wanted, atol=2e-5)


def test_over_eight_devices_it_is_the_same():
  mesh = make_mesh(data=4, fsdp=1, tensor=2)
  rows = NamedSharding(mesh, PartitionSpec("data"))
  hidden, told = jax.device_put((HIDDEN, TOLD), rows)
  kernel = jax.device_put(KERNEL, NamedSharding(mesh, PartitionSpec(None, None)))
  step = jax.jit(jax.grad(lambda h, k: chunked(h, k, SCALE, told, WEIGHTS, 3)[0], argnums=(0, 1)))
  wanted = jax.grad(lambda h, k: plain(h, k, SCALE, TOLD, WEIGHTS)[0], argnums=(0, 1))(
    HIDDEN, KERNEL
  )
  for given, own in zip(step(hidden, kernel), wanted, strict=True):
    np.testing.assert_allclose(given, own, atol=2e-6)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_a_heads_weight_travels_once_and_not_with_every_chunk(tied, sizes):
  rows, classes = 8, 16
  hidden, told = draw(0, rows, TIME, 8), draw(1, rows, TIME, classes)
  weight = draw(2, *((classes, 8) if tied else (8, classes)))
  where = jnp.ones((rows, TIME), bool)
  fn = lambda logits, told, where: (losses.forward_kl(logits, told, where=where), {})  # noqa: E731

  def loss(hidden, weight, told):
    return chunked_sum(fn, hidden, told, where, where, 1, Head(weight, tied=tied))[0]

  mesh = make_mesh(data=sizes["data"], fsdp=sizes.get("fsdp", 1), tensor=sizes.get("tensor", 1))
  split = PartitionSpec("tensor", "fsdp") if tied else PartitionSpec("fsdp", "tensor")
  lies = [NamedSharding(mesh, s) for s in (PartitionSpec(("data", "fsdp")), split)]
  step = jit_on(
    mesh, jax.grad(loss, argnums=(0, 1)), in_shardings=(*lies, lies[0]), out_shardings=tuple(lies)
  )
  given = step(hidden, weight, told)
  for own, wanted in zip(given, jax.grad(loss, argnums=(0, 1))(hidden, weight, told), strict=True):
    np.testing.assert_allclose(own, wanted, atol=1e-5)
  sent = by_kind(collectives(step.lower(hidden, weight, told).compile().as_text(), mesh))
  size = 4 * weight.size
  if "fsdp" in sizes:
    assert sent["reduce-scatter", ("fsdp",)] == size and sent["all-reduce", ("data",)] == size // 4
  else:
    assert sent["all-reduce", ("data",)] in (size // 2, size // 2 + 4)  # the loss may come with it


def test_what_is_masked_may_be_nan():
  bad = jnp.where(WHERE[..., None], HIDDEN, jnp.nan)
  grad = jax.grad(lambda h: chunked(h, KERNEL, SCALE, TOLD, WEIGHTS, 3)[0])(bad)
  wanted = jax.grad(lambda h: plain(h, KERNEL, SCALE, TOLD, WEIGHTS)[0])(HIDDEN)
  np.testing.assert_allclose(grad, wanted, atol=2e-6)


@pytest.fixture(params=["one device", "several"])
def devices(request):
  """Traces under a mesh of one or of two devices."""
  mesh = make_mesh(data=1 if request.param == "one device" else 2)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    yield mesh.size


@pytest.mark.parametrize("tied", [True, False])
def test_a_given_head_gets_the_gradients_of_one_that_is_closed_over(tied, devices):
  def loss(hidden, weight, bias, whole):
    head = Head(weight.T if tied else weight, bias, softcap=2.0, tied=tied)
    if whole:
      values, sure = losses.forward_kl(head.logits(hidden), TOLD, where=WHERE), 0.0
      return (values * WEIGHTS).sum(), sure
    fn = lambda logits, told, where: (losses.forward_kl(logits, told, where=where), {})  # noqa: E731
    return chunked_sum(fn, hidden, TOLD, WHERE, WEIGHTS, 3, head)[0], 0.0

  def of(whole):
    grad = jax.value_and_grad(lambda *a: loss(*a, whole)[0], argnums=(0, 1, 2))
    return jax.tree.leaves(jax.jit(grad)(HIDDEN, KERNEL, SCALE))

  for given, wanted in zip(of(False), of(True), strict=True):
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=2e-6)
    assert np.abs(wanted).max() > 1e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("classes", [5, 2 * BLOCK, 2 * BLOCK + 3])
def test_blocks_of_classes_give_the_whole_products(classes, tied, dtype, devices):
  hidden, gradient = draw(6, 2, 3, WIDTH).astype(dtype), draw(7, 2, 3, classes)
  shape = (classes, WIDTH) if tied else (WIDTH, classes)
  weight, total = draw(8, *shape), draw(9, *shape)
  states, found = jax.jit(lambda w, t: pull_back(Head(w, tied=tied), hidden, gradient, t))(
    weight, total
  )
  kernel = np.asarray(weight.T if tied else weight, np.float64)
  outer = np.einsum("btd,btv->dv", np.float64(hidden), np.float64(gradient))
  # A product in bfloat16 rounds each factor to 8 bits.
  error = 1e-5 if dtype == jnp.float32 else 2**-8
  wanted = np.einsum("btv,dv->btd", np.float64(gradient), kernel)
  np.testing.assert_allclose(np.float64(states), wanted, atol=4 * error * np.abs(wanted).max())
  outer = np.asarray(total) + (outer.T if tied else outer)
  np.testing.assert_allclose(found, outer, atol=4 * error * np.abs(outer).max())
  assert states.dtype == dtype and found.dtype == jnp.float32


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("classes", [5, 2 * BLOCK, 2 * BLOCK + 3])
def test_a_gradient_scaled_in_place_is_scaled_once(classes, tied, devices):
  total = draw(9, *((classes, 2) if tied else (2, classes)))
  scaled = jax.jit(lambda t: scale(t, jnp.float32(3.0), tied=tied))(total)
  np.testing.assert_array_equal(scaled, 3 * np.asarray(total))


def test_a_frozen_head_costs_no_gradient_of_its_weight():
  def written(argnums):
    def loss(hidden, weight):
      both = Outputs(hidden=hidden, head=Head(weight, tied=True))
      term, _ = map_logits(losses.forward_kl, both, both, {"mask": WHERE}, chunk_size=1)
      return term.values

    with jax.sharding.use_abstract_mesh(make_mesh(data=1).abstract_mesh):
      lowered = jax.jit(jax.grad(loss, argnums)).lower(HIDDEN, draw(0, 9 * BLOCK, WIDTH))
    memory = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes

  assert written((0, 1)) - written(0) > 0.9 * 4 * 9 * BLOCK * WIDTH


def test_memory_does_not_grow_with_the_sequence():
  def temporary(time):
    hidden = jax.ShapeDtypeStruct((1, time, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((8, 4096), jnp.float32)

    def loss(hidden, kernel):
      both = Outputs(hidden=hidden, head=Head(kernel))
      batch = {"mask": jnp.ones((1, time), bool)}
      term, _ = map_logits(losses.forward_kl, both, both, batch, chunk_size=16)
      return term.values

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporary(512) < 1.1 * temporary(64)


def test_sums_of_chunks_count_no_padding():
  values = jnp.arange(14.0).reshape(2, 7)
  total = sum_chunks(lambda x: {"sum": x.sum()}, values, (2, 7), 3)
  assert total["sum"] == 91


def test_weights_of_positions_weigh_the_mean():
  student, teacher = Outputs(logits=TOLD * 2), Outputs(logits=TOLD)
  batch = {"mask": WHERE, "weight": WEIGHTS + 1}
  term, _ = map_logits(losses.forward_kl, student, teacher, batch)
  wanted = np.average(losses.forward_kl(TOLD * 2, TOLD), weights=np.where(WHERE, WEIGHTS + 1, 0))
  given = (term.values * term.where).sum() / term.where.sum()
  np.testing.assert_allclose(given, wanted, rtol=1e-5)
