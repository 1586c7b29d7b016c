"""Layers that share attention maps: which, what they lack, and that the map is the same."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.adapters import kernels_of
from kdjax.models.transformer import Spec, language_model
from kdjax.models.transformer.sharing import Run, block_ends, runs_of, share, shared_map
from kdjax.train.mesh import STUDENT_RULES, batch_sharding, make_mesh, shardings

MAP = (0, 1, 1, 1, 4, 4, 6)
SPEC = Spec(
  vocab=40, width=16, depth=7, heads=4, kv_heads=2, head_dim=4, mlp_width=24, max_positions=32
)
SHARING = SPEC.replace(attention_from=MAP)
TOKENS = jax.random.randint(jax.random.key(1), (4, 12), 0, 40)


@functools.cache
def whole():
  """A model that shares nothing, with weights large enough that its maps differ."""
  model = language_model(SPEC)
  variables = model.init(jax.random.key(0))
  return model, variables._replace(params=jax.tree.map(lambda a: 6 * a, variables.params))


@functools.cache
def sharing():
  model, (_, variables) = language_model(SHARING), whole()
  return model, variables._replace(params=share(variables.params, MAP))


def logits(model, variables, tokens=TOKENS):
  return jax.jit(lambda v, t: model.apply(v, {"tokens": t})[0].logits)(variables, tokens)


def test_blocks_are_read_off_the_map():
  assert shared_map(7, first=1, last=1, size=3) == MAP
  assert shared_map(4, first=1, last=1, size=1) == (0, 1, 2, 3)
  assert block_ends(MAP) == (3, 5)
  assert runs_of(MAP, 0, 7) == [
    Run(1, 1, 0, 0, 0), Run(1, 3, 1, 1, 0), Run(1, 2, 4, 2, 2), Run(1, 1, 6, 3, 3),
  ]  # fmt: skip
  assert runs_of((0, 0, 2, 2, 4, 5), 2, 6) == [Run(1, 2, 2, 1, 1), Run(2, 1, 4, 2, 2)]
  assert runs_of(MAP, 1, 3) == [Run(1, 2, 1, 1, 0)]


@pytest.mark.parametrize("wrong", [(0, 1), (1,) * 7, (0, 1, 0, 1, 4, 5, 6), (0, 0, 1, 3, 4, 5, 6)])
def test_other_maps_are_refused(wrong):
  with pytest.raises(KdjaxError, match="attention_from"):
    SPEC.replace(attention_from=wrong)
  with pytest.raises(KdjaxError, match="first = 4, last = 4"):
    shared_map(7, first=4, last=4, size=2)


def test_a_window_is_not_shared_with_layers_that_see_all():
  local = {"window": 4, "local": (False, True) + (False,) * 5}
  SPEC.replace(attention_from=(0, 1, 2, 2, 4, 4, 6), **local)
  with pytest.raises(KdjaxError, match="of its kind"):
    SPEC.replace(attention_from=(0, 0, 2, 2, 4, 4, 6), **local)


def test_without_copies_it_is_the_model_itself():
  model, variables = whole()
  own = language_model(SPEC.replace(attention_from=tuple(range(7))))
  params = share(variables.params, range(7))
  np.testing.assert_array_equal(
    logits(own, variables._replace(params=params)), logits(model, variables)
  )


def test_copying_layers_lack_queries_and_keys():
  count = lambda tree: sum(math.prod(a.shape) for a in jax.tree.leaves(tree))  # noqa: E731
  (_, full), (_, less) = whole(), sharing()
  removed = 3 * (16 * 4 * 4 + 16 * 2 * 4)  # query: width x heads x head_dim; key: of two heads
  assert count(full.params) - count(less.params) == removed
  found = kernels_of(less.params, ("query", "value"))
  depths = {name: kernel.array.shape[0] for name, kernel in found.items()}
  assert depths == {
    "stack/blocks/attention/query/kernel": 4,
    "stack/blocks/attention/value/kernel": 4,
    "stack/copies/attention/value/kernel": 3,
  }


def test_maps_are_those_of_the_first_layer_of_the_block():
  model, variables = sharing()
  taps = frozenset({"attention", "queries", "values", "hidden_states"})
  out = jax.jit(lambda v: model.apply(v, {"tokens": TOKENS}, taps=taps)[0])(variables)
  for layer, source in enumerate(MAP):
    np.testing.assert_array_equal(out.attention[layer], out.attention[source])
    np.testing.assert_array_equal(out.queries[layer], out.queries[source])
  apart = [np.abs(out.attention[i] - out.attention[i + 1]).max() for i in (0, 3, 5)]
  assert min(apart) > 0.01
  np.testing.assert_allclose(out.attention.sum(-1), 1, rtol=1e-5)
  assert not np.triu(out.attention, 1).any()
  # States before the first copying layer are those of the whole model, and none after it.
  full, weights = whole()
  taps = frozenset({"hidden_states"})
  states = jax.jit(lambda v: full.apply(v, {"tokens": TOKENS}, taps=taps)[0])(weights).hidden_states
  np.testing.assert_allclose(out.hidden_states[:2], states[:2], rtol=1e-4, atol=1e-4)
  assert np.abs(out.hidden_states[2] - states[2]).max() > 1e-3


def test_layers_that_would_compute_the_same_map_may_share_it():
  model, variables = whole()
  stack = variables.params["stack"]
  blocks = jax.tree.map(jnp.copy, stack["blocks"])
  # Layers 1 and 2 add nothing, so that 1 to 3 read the same, and have the same queries and keys.
  for part, name in (("attention", "out"), ("mlp", "down")):
    blocks[part][name]["kernel"] = blocks[part][name]["kernel"].at[1:3].set(0)
  for name in ("query", "key"):
    kernel = blocks["attention"][name]["kernel"]
    blocks["attention"][name]["kernel"] = kernel.at[2:4].set(kernel[1])
  params = {**variables.params, "stack": {**stack, "blocks": blocks}}
  alike = (0, 1, 1, 1, 4, 5, 6)
  own = language_model(SPEC.replace(attention_from=alike))
  np.testing.assert_allclose(
    logits(own, variables._replace(params=share(params, alike))),
    logits(model, variables._replace(params=params)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_decoding_with_a_cache_is_the_whole_pass():
  model, variables = sharing()
  length = TOKENS.shape[1]

  @jax.jit
  def decoded(variables):
    decoding = model.decode(variables)
    out, _, cache = decoding.prefill(TOKENS[:, :5], jnp.full(4, 5), length)
    said = [out.head.logits(out.hidden)]
    for start, stop in [(5, 8), (8, 9)]:
      places = jnp.broadcast_to(jnp.arange(start, stop), (4, stop - start))
      out, cache = decoding.extend(TOKENS[:, start:stop], places, cache)
      said.append(out.head.logits(out.hidden))
    return jnp.concatenate(said, 1), cache

  said, cache = decoded(variables)
  np.testing.assert_allclose(said, logits(model, variables)[:, 4:9], atol=2e-4)
  assert (len(cache.keys), len(cache.values)) == (4, 7)


def test_recomputation_changes_no_gradient():
  _, variables = sharing()

  def gradient(model):
    def loss(params):
      out, _ = model.apply(variables._replace(params=params), {"tokens": TOKENS})
      return jnp.square(out.logits).mean()

    return jax.jit(jax.grad(loss))(variables.params)

  found, wanted = (gradient(language_model(SHARING, remat=r)) for r in ("mlp", "none"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)
  query = wanted["stack"]["blocks"]["attention"]["query"]["kernel"]
  assert (np.abs(query).max((1, 2, 3)) > 0).all()


def test_packed_dropout_and_bfloat16_run():
  model = language_model(SHARING.replace(dropout=0.2), dtype="bfloat16")
  _, variables = sharing()
  batch = {
    "tokens": TOKENS,
    "segment_ids": jnp.array([[1] * 5 + [2] * 7] * 4),
    "positions": jnp.array([[*range(5), *range(7)]] * 4),
  }

  def run(rng):
    return model.apply(variables, batch, train=True, rng=rng)[0].logits

  first, second = (jax.jit(run)(jax.random.key(i)) for i in (0, 1))
  assert np.isfinite(first).all() and np.abs(first - second).max() > 1e-3


def test_a_segment_begins_with_a_block():
  model, variables = sharing()
  taps = frozenset({"segment", "hidden_states"})
  out, _ = model.apply(variables, {"tokens": TOKENS}, taps=taps)
  np.testing.assert_allclose(
    out.segment(out.hidden_states[0], 1, 6), out.hidden_states[5], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(out.segment(out.hidden_states[0], 1, 1), out.hidden_states[0])
  with pytest.raises(KdjaxError, match="layer 2 uses the attention of layer 1"):
    out.segment(out.hidden_states[1], 2, 6)


def test_on_eight_devices_it_is_the_same():
  model, variables = sharing()
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(variables, shardings(variables, model.axes(), STUDENT_RULES, mesh))
  found = logits(model, placed, jax.device_put(TOKENS, batch_sharding(mesh)))
  np.testing.assert_allclose(found, logits(model, variables), rtol=1e-4, atol=1e-4)


def test_a_longer_run_of_blocks_costs_no_compile_time():
  def size(blocks):
    sources = shared_map(2 * blocks, first=0, last=0, size=2)
    model = language_model(SPEC.replace(depth=2 * blocks, attention_from=sources))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, {"tokens": TOKENS})[0].logits)(variables)
    return str(jaxpr).count("dot_general")

  assert size(2) == size(6) > 0
