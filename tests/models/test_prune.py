"""Smaller models: what is left out, what must not change, where it lies, what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.base import ModelVars
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
  return model, variables, {"tokens": reference(name)[0]["tokens"]}


@functools.cache
def applied(spec):
  model = language_model(spec)
  return jax.jit(lambda params, batch: model.apply(ModelVars(params, {}), batch)[0].logits)


def logits(spec, params, batch):
  return applied(spec)(params, batch)


def alike(spec):
  """Importance by which nothing differs."""
  shapes = (spec.depth,), (spec.depth, spec.heads), (spec.depth, spec.mlp_width), (spec.width,)
  return Importance(*map(jnp.ones, shapes))


def edited(params, changes):
  """The parameters with {path: function} applied."""

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for part, change in changes.items():
      leaf = change(leaf) if name.endswith(part) else leaf
    return leaf

  return jax.tree_util.tree_map_with_path(one, params)


def pruned(name, params, child):
  model, _, batch = model_of(name)
  chosen = score(importance(model.spec, params, [batch]), model.spec, child)
  return make(params, model.spec, child, chosen), chosen


@pytest.mark.parametrize("name", ["gemma3", "bert"])
def test_at_full_size_it_is_the_model(name):
  model, variables, _ = model_of(name)
  same = narrow(model.spec, width=32, heads=model.spec.heads, mlp_width=model.spec.mlp_width)
  assert same == model.spec
  given = make(variables.params, model.spec, same, score(alike(same), model.spec, same))
  jax.tree.map(np.testing.assert_array_equal, given, variables.params)


@pytest.mark.parametrize(("name", "width"), [("gemma3", 28), ("llama", 28), ("gpt_neox", 32)])
def test_what_is_zero_is_left_out_without_a_change(name, width):
  """With grouped heads, norms of heads, the table's factor and a tied head (gemma3) and without.

  A layer norm (gpt_neox) subtracts the mean of all channels, so that none can go unnoticed.
  """
  model, variables, batch = model_of(name)
  spec = model.spec
  group, neurons, channels = spec.heads // spec.kv_heads, [0, 7, 30], [2, 3, 17, 31][: 32 - width]
  zero = lambda *at: lambda x: x.at[at].set(0)  # noqa: E731
  params = edited(
    variables.params,
    {
      "value/kernel": zero(slice(None), slice(None), 0),
      "value/bias": zero(slice(None), 0),
      "up/kernel": zero(..., jnp.array(neurons)),
      "up/bias": zero(..., jnp.array(neurons)),
    },
  )
  if channels:
    names = "embed/tokens", "out/kernel", "down/kernel"
    params = edited(params, dict.fromkeys(names, zero(..., jnp.array(channels))))
  child = narrow(spec, width=width, kv_heads=spec.kv_heads - 1, mlp_width=spec.mlp_width - 3)
  assert (child.embed_scale == 1.0) if name != "gemma3" else (child.embed_scale == width**0.5)
  small, chosen = pruned(name, params, child)
  assert (np.asarray(chosen.kv_heads) == np.arange(1, spec.kv_heads)).all()
  assert (np.asarray(chosen.heads) == np.arange(group, spec.heads)).all()
  assert not np.isin(chosen.neurons, neurons).any()
  assert np.asarray(chosen.channels).tolist() == [i for i in range(32) if i not in channels]
  wanted = logits(spec, params, batch)
  np.testing.assert_allclose(logits(child, small, batch), wanted, atol=1e-4)
  assert np.abs(wanted - logits(spec, variables.params, batch)).max() > 1e-2


def test_the_layer_that_does_nothing_is_the_one_left_out():
  model, variables, batch = model_of("llama")
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
  model, variables, _ = model_of("llama")
  child = narrow(model.spec, mlp_width=40)
  with pytest.raises(KdjaxError, match=r"selection.neurons has shape \(3, 48\).* \(3, 40\)"):
    prune(variables.params, model.spec, child, select(alike(model.spec), model.spec, model.spec))
