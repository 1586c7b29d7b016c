"""A classifier of texts: its encoder is the checkpoint's, its head reads the tokens' mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.models.base import ModelVars, overlay
from tests.models.convert.folders import FOLDER

BERT, T5 = str(FOLDER / "bert"), str(FOLDER / "t5")


@pytest.fixture(scope="module")
def started():
  model = models.text_classifier(path=BERT, num_classes=3)
  return model, overlay(model.init(jax.random.key(0)), model.start())


def rows(padding=0):
  tokens = jnp.arange(1, 9).reshape(2, 4)
  shape = ((0, 0), (0, padding))
  return {
    "tokens": jnp.pad(tokens, shape),
    "segment_ids": jnp.pad(jnp.ones_like(tokens), shape),
  }


def test_logits_are_those_of_the_mean_of_the_encoders_states(started):
  model, variables = started
  inner = models.pretrained(path=BERT)
  out, _ = model.apply(variables, rows(), taps=frozenset({"logits", "hidden_states"}))
  told, _ = inner.apply(inner.start(), rows(), taps=frozenset({"hidden_states"}))
  np.testing.assert_allclose(out.hidden_states, told.hidden_states, atol=1e-6)
  head = variables.params["head"]
  mean = np.asarray(told.hidden_states[-1], np.float64).mean(1)
  np.testing.assert_allclose(out.logits, mean @ np.asarray(head["kernel"]), atol=1e-5)
  taps = frozenset({"hidden", "head", "logits"})
  parts, _ = model.apply(variables, rows(), taps=taps)
  np.testing.assert_array_equal(parts.head.logits(parts.hidden), parts.logits)


def test_padding_changes_nothing(started):
  model, variables = started
  short, long = (model.apply(variables, rows(n))[0].logits for n in (0, 3))
  np.testing.assert_allclose(short, long, atol=1e-5)


def test_no_gradient_reaches_the_head_where_logits_are_not_asked_for(started):
  model, variables = started

  def loss(params):
    out, _ = model.apply(
      ModelVars(params, variables.state), rows(), taps=frozenset({"hidden_states"})
    )
    return jnp.square(out.hidden_states).sum()

  grad = jax.grad(loss)(variables.params)
  assert not any(leaf.any() for leaf in jax.tree.leaves(grad["head"]))
  assert any(leaf.any() for leaf in jax.tree.leaves(grad["encoder"]))


def test_axes_name_every_dimension(started):
  model, variables = started
  axes = model.axes()
  jax.tree.map(lambda leaf, names: None, variables.params, axes.params)
  flat = zip(jax.tree.leaves(variables.params), jax.tree.leaves(axes.params), strict=True)
  assert all(leaf.ndim == len(names) for leaf, names in flat)


@pytest.mark.parametrize(
  "fields, told",
  [
    ({"layer": 1}, "layer is not an argument of 'text_classifier'.*'layers'"),
    ({"adapter": {"rank": 1}}, "adapter is not an argument"),
    ({"path": T5}, "is an encoder-decoder"),
    ({"num_classes": 0}, "num_classes"),
    ({"layers": 99}, "layers = 99"),
  ],
)
def test_mistakes(fields, told):
  with pytest.raises(KdjaxError, match=told):
    models.text_classifier(**({"path": BERT, "num_classes": 3} | fields))
