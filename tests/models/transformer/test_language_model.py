"""What holds for every transformer: packing, segments, cache, sharding, depth, precision."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.transformer import Spec, language_model
from kdjax.train.mesh import STUDENT_RULES, batch_sharding, make_mesh, shardings
from tests.models.convert.folders import DECODERS, opened, reference

SPEC = Spec(
  vocab=64, width=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_positions=32
)
TOKENS = jax.random.randint(jax.random.key(1), (8, 16), 0, 64)


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_packed_sequences_do_not_see_each_other(name):
  _, model, variables = opened(name)
  tokens = np.asarray(reference(name)[0]["tokens"])
  first, second = tokens[:1, :9], tokens[1:, :12]
  run = jax.jit(lambda v, b: model.apply(v, b, taps=frozenset({"hidden"}))[0].hidden)
  apart = [run(variables, {"tokens": part}) for part in (first, second)]
  packed = np.zeros((1, 24), np.int32)
  segments, positions = np.zeros_like(packed), np.zeros_like(packed)
  packed[0, :9], packed[0, 9:21] = first, second
  segments[0, :9], segments[0, 9:21] = 1, 2
  positions[0, :9], positions[0, 9:21] = np.arange(9), np.arange(12)
  batch = {"tokens": packed, "segment_ids": segments, "positions": positions}
  hidden = np.asarray(run(variables, batch))
  np.testing.assert_allclose(hidden[:, :9], apart[0], atol=2e-5)
  np.testing.assert_allclose(hidden[:, 9:21], apart[1], atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_with_a_cache_is_the_whole_pass(name):
  _, model, variables = opened(name)
  tokens = reference(name)[0]["tokens"]
  whole = jax.jit(lambda v, t: model.apply(v, {"tokens": t})[0].logits)(variables, tokens)
  length = tokens.shape[1]

  @jax.jit
  def decoded(variables, tokens):
    decoding = model.decode(variables)
    places = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
    ends = jnp.full(len(tokens), 11)
    out, begin, cache = decoding.prefill(tokens[:, :13], ends, length)
    logits = [out.head.logits(out.hidden)]
    # Some tokens at once, then one by one.
    for start, stop in [(11, 16), *((i, i + 1) for i in range(16, 19))]:
      out, cache = decoding.extend(tokens[:, start:stop], places[:, start:stop], cache)
      logits.append(out.head.logits(out.hidden))
    return jnp.concatenate(logits, axis=1), begin

  given, begin = decoded(variables, tokens)
  np.testing.assert_allclose(given, np.asarray(whole)[:, 10:19], atol=5e-5)
  assert begin.tolist() == [11] * len(tokens)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "gpt_neox"])
def test_a_segment_goes_from_one_layer_to_another_and_passes_gradients(name):
  _, model, variables = opened(name)
  batch = reference(name)[0]
  taps = frozenset({"hidden_states", "segment"})
  out, _ = jax.jit(lambda v, b: model.apply(v, b, taps=taps))(variables, batch)
  segment = jax.jit(out.segment, static_argnums=(1, 2))
  given = segment(out.hidden_states[0], 1, 3)
  np.testing.assert_allclose(given, out.hidden_states[2], atol=1e-5)
  gradient = jax.grad(lambda h: segment(h, 1, 3).sum())(out.hidden_states[0])
  assert np.abs(gradient).max() > 0


def loss_of(model, variables, batch):
  return (model.apply(variables, batch, taps=frozenset({"logits"}))[0].logits ** 2).mean()


def test_sharded_over_eight_devices_it_is_the_same():
  model = language_model(SPEC)
  variables = model.init(jax.random.key(0))
  step = jax.jit(jax.value_and_grad(lambda v, b: loss_of(model, v, b)))
  wanted, wanted_grad = step(variables, {"tokens": TOKENS})
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(variables, shardings(variables, model.axes(), STUDENT_RULES, mesh))
  assert placed.params["stack"]["blocks"]["mlp"]["up"]["kernel"].sharding.spec[1:] == (
    "fsdp",
    "tensor",
  )
  value, grad = step(placed, jax.device_put({"tokens": TOKENS}, batch_sharding(mesh)))
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad, wanted_grad)


@pytest.mark.parametrize("remat", ["mlp", "full"])
def test_recomputing_changes_no_gradient(remat):
  plain, other = language_model(SPEC), language_model(SPEC, remat=remat)
  variables = plain.init(jax.random.key(0))
  wanted, given = (
    jax.jit(jax.grad(functools.partial(loss_of, model)))(variables, {"tokens": TOKENS})
    for model in (plain, other)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), given, wanted)


def test_the_program_does_not_grow_with_depth():
  def size(depth):
    model = language_model(SPEC.replace(depth=depth))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"tokens": jax.ShapeDtypeStruct((2, 16), jnp.int32)}
    return len(jax.jit(jax.grad(functools.partial(loss_of, model))).lower(shapes, batch).as_text())

  assert size(48) < 1.1 * size(6)


def test_bfloat16_computes_in_bfloat16_near_float32():
  model, half = language_model(SPEC), language_model(SPEC, dtype="bfloat16")
  variables = model.init(jax.random.key(0))
  taps = frozenset({"hidden_states", "logits"})
  wanted, given = (
    jax.jit(lambda v, m=m: m.apply(v, {"tokens": TOKENS}, taps=taps)[0])(variables)
    for m in (model, half)
  )
  assert given.hidden_states.dtype == jnp.bfloat16 and given.logits.dtype == jnp.float32
  scale = float(np.abs(wanted.logits).max())
  assert 0 < np.abs(given.logits - wanted.logits).max() < 0.05 * scale


def test_attention_holds_no_square_array_for_the_backward_pass():
  """Scores are computed again: a long row's residuals grow with its length, not its square."""
  model = language_model(SPEC.replace(max_positions=256))
  variables = model.init(jax.random.key(0))
  tokens = jnp.zeros((1, 256), jnp.int32)
  text = (
    jax.jit(jax.grad(lambda v: loss_of(model, v, {"tokens": tokens}))).lower(variables).as_text()
  )
  assert "256x256" in text and not re.search(r"tensor<3x[0-9x]*256x256xf32>", text)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"kv_heads": 3}, "kv_heads.*divisor of heads"),
    ({"block": "middle"}, "'block'"),
    ({"local": (True,)}, "one entry for each of the 3 layers"),
    ({"depth": 0}, "'depth' is 0"),
  ],
)
def test_fields_out_of_range_are_told(changes, told):
  with pytest.raises(KdjaxError, match=told):
    SPEC.replace(**changes)


def test_a_sequence_longer_than_the_positions_is_told():
  model = language_model(SPEC)
  variables = model.init(jax.random.key(0))
  with pytest.raises(KdjaxError, match="33 tokens is longer than the model's max_positions = 32"):
    model.apply(variables, {"tokens": jnp.zeros((1, 33), jnp.int32)})
  with pytest.raises(KdjaxError, match="no key 'tokens'"):
    model.apply(variables, {"image": jnp.zeros((1, 3))})


def test_dropout_needs_a_key_and_changes_training_alone():
  model = language_model(SPEC.replace(dropout=0.5))
  variables = model.init(jax.random.key(0))
  batch = {"tokens": TOKENS}
  with pytest.raises(KdjaxError, match="wants rng="):
    model.apply(variables, batch, train=True)
  run = jax.jit(lambda key: model.apply(variables, batch, train=True, rng=key)[0].logits)
  one, other = run(jax.random.key(1)), run(jax.random.key(2))
  assert np.abs(one - other).max() > 1e-3
