"""Smaller models: what is left out, what must not change, where it lies, what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, spec_of
from kdjax.models.importance import Importance, importance
from kdjax.models.prune import keep_layers, narrow, prune, select
from kdjax.models.transformer import language_model
from tests.models.convert.folders import FOLDER, random_variables, reference

make = jax.jit(prune, static_argnums=(1, 2))
score = jax.jit(select, static_argnums=(1, 2), static_argnames="layers")


@functools.cache
def model_of(name):
  checkpoint = open_checkpoint(FOLDER / name)
  # The eps is too small to tell a mean over more channels, zeros among them, from one over fewer.
  spec = spec_of(checkpoint.config, checkpoint.names).replace(norm_eps=1e-12)
  model, variables = language_model(spec), random_variables(spec)
  batch = {"tokens": reference(name)[0]["tokens"]}
  return model, variables, batch, importance(model.spec, variables.params, [batch])


def logits(spec, params, batch):
  model = language_model(spec)
  variables = jax.eval_shape(model.init, jax.random.key(0))._replace(params=params)
  return jax.jit(lambda v: model.apply(v, batch)[0].logits)(variables)


def edited(params, changes):
  """The parameters with {path: function} applied."""

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for part, change in changes.items():
      leaf = change(leaf) if name.endswith(part) else leaf
    return leaf

  return jax.tree_util.tree_map_with_path(one, params)


def pruned(name, params, child):
  model, _, batch, _ = model_of(name)
  chosen = score(importance(model.spec, params, [batch]), model.spec, child)
  return make(params, model.spec, child, chosen), chosen


@pytest.mark.parametrize("name", ["gemma2", "bert"])
def test_at_full_size_it_is_the_model(name):
  model, variables, _, found = model_of(name)
  same = narrow(model.spec, width=32, heads=model.spec.heads, mlp_width=model.spec.mlp_width)
  assert same == model.spec
  given = make(variables.params, model.spec, same, score(found, model.spec, same))
  jax.tree.map(np.testing.assert_array_equal, given, variables.params)


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox"])
def test_heads_and_neurons_that_are_zero_are_left_out_without_a_change(name):
  model, variables, batch, _ = model_of(name)
  spec = model.spec
  group = spec.heads // spec.kv_heads
  zero = lambda *at: lambda x: x.at[at].set(0)  # noqa: E731
  changes = {"value/kernel": zero(slice(None), slice(None), 0), "value/bias": zero(slice(None), 0)}
  neurons = jnp.array([0, 7, 30])
  changes |= {"up/kernel": zero(..., neurons), "up/bias": zero(..., neurons)}
  params = edited(variables.params, changes)
  child = narrow(spec, kv_heads=spec.kv_heads - 1, mlp_width=spec.mlp_width - 3)
  small, chosen = pruned(name, params, child)
  assert (np.asarray(chosen.kv_heads) == np.arange(1, spec.kv_heads)).all()
  assert (np.asarray(chosen.heads) == np.arange(group, spec.heads)).all()
  wanted = logits(spec, params, batch)
  np.testing.assert_allclose(logits(child, small, batch), wanted, atol=2e-5)
  assert np.abs(wanted - logits(spec, variables.params, batch)).max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_channels_that_are_zero_are_left_out_without_a_change(name):
  """With the table's factor (gemma2), a tied head (gemma2) and one of its own (llama)."""
  model, variables, batch, _ = model_of(name)
  channels = [2, 3, 17, 31]
  zero = lambda x: x.at[..., jnp.array(channels)].set(0)  # noqa: E731
  params = edited(variables.params, {
    "embed/tokens": zero, "out/kernel": zero, "down/kernel": zero,
  })  # fmt: skip
  child = narrow(model.spec, width=28)
  assert child.embed_scale == (28**0.5 if name == "gemma2" else 1.0)
  small, chosen = pruned(name, params, child)
  assert set(range(32)) - set(np.asarray(chosen.channels).tolist()) == set(channels)
  np.testing.assert_allclose(
    logits(child, small, batch), logits(model.spec, params, batch), atol=2e-4
  )


def test_the_layer_that_does_nothing_is_the_one_left_out():
  model, variables, batch, _ = model_of("llama")
  nothing = lambda x: x.at[1].set(0)  # noqa: E731
  params = edited(variables.params, {"out/kernel": nothing, "down/kernel": nothing})
  child = keep_layers(model.spec, range(2))
  small, chosen = pruned("llama", params, child)
  assert np.asarray(chosen.layers).tolist() == [0, 2]
  np.testing.assert_allclose(
    logits(child, small, batch), logits(model.spec, params, batch), atol=1e-5
  )


def test_query_heads_stay_with_the_key_and_value_head_they_read():
  spec = model_of("llama")[0].spec.replace(heads=6, kv_heads=3, depth=1)
  heads = jnp.array([[5.0, 0.0, 1.0, 2.0, 3.0, 3.0]])  # lengths of the three: 5, 2.2 and 4.2
  found = Importance(jnp.ones(1), heads, jnp.ones((1, 48)), jnp.ones(32))
  kept = lambda **sizes: select(found, spec, narrow(spec, **sizes))  # noqa: E731
  assert kept(kv_heads=2).kv_heads.tolist() == [[0, 2]]
  assert kept(kv_heads=2).heads.tolist() == [[0, 1, 4, 5]]
  assert kept(heads=3).heads.tolist() == [[0, 3, 4]]  # one of each; of equals the first
  assert kept(heads=2, kv_heads=2).heads.tolist() == [[0, 4]]
  assert kept(width=3).channels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  ("sizes", "told"),
  [
    ({"width": 33}, "width = 33: wanted 1 to 32"),
    ({"width": 0}, "'width' is 0; wanted an integer >= 1"),
    ({"mlp_width": 49}, "mlp_width = 49: wanted 1 to 48"),
    ({"heads": 3}, "heads = 3 with kv_heads = 2: wanted a multiple of kv_heads, at most 2"),
    ({"heads": 4, "kv_heads": 1}, "heads = 4 with kv_heads = 1: .* at most 2 query heads"),
  ],
)
def test_sizes_that_do_not_fit_are_told(sizes, told):
  with pytest.raises(KdjaxError, match=told):
    narrow(model_of("llama")[0].spec, **sizes)


def test_a_selection_of_other_sizes_is_told():
  model, variables, _, found = model_of("llama")
  child = narrow(model.spec, mlp_width=40)
  with pytest.raises(KdjaxError, match=r"selection.neurons has shape \(3, 48\).* \(3, 40\)"):
    prune(variables.params, model.spec, child, select(found, model.spec, model.spec))
