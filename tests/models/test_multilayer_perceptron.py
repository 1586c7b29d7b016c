import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from kdjax.models import ModelVars, mlp


def test_parameter_count():
  model = mlp(num_classes=10, image_shape=(8, 8, 1), hidden=(32, 16))
  sizes = [leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0)).params)]
  # (64 + 1) 32 + (32 + 1) 16 + (16 + 1) 10
  assert sum(sizes) == 2080 + 528 + 170


def test_by_hand():
  model = mlp(num_classes=2, image_shape=(1, 2, 1), hidden=(2,))
  params = {
    "layer_0": {"kernel": jnp.array([[1.0, -1.0], [2.0, 1.0]]), "bias": jnp.array([0.0, 0.5])},
    "head": {"kernel": jnp.array([[1.0, 0.0], [2.0, 1.0]]), "bias": jnp.array([0.0, 0.1])},
  }
  out, _ = model.apply(
    ModelVars(params, {}),
    {"image": jnp.array([3.0, 1.0]).reshape(1, 1, 2, 1)},
    taps=frozenset({"logits", "hidden_states"}),
  )
  # [3 + 2, -3 + 1 + 0.5] = [5, -1.5], relu [5, 0]; head [5 + 0, 0 + 0 + 0.1]
  np.testing.assert_array_equal(out.hidden_states[0], [[5.0, 0.0]])
  np.testing.assert_allclose(out.logits, [[5.0, 0.1]])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_numpy(activation):
  model = mlp(num_classes=3, image_shape=(4, 4, 1), hidden=(8, 5), activation=activation)
  variables = model.init(jax.random.key(0))
  image = jax.random.normal(jax.random.key(1), (6, 4, 4, 1))
  out, _ = model.apply(variables, {"image": image})
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
  hidden = np.asarray(image, np.float64).reshape(6, 16)
  for layer in ("layer_0", "layer_1"):
    hidden = hidden @ params[layer]["kernel"] + params[layer]["bias"]
    hidden = np.maximum(hidden, 0) if activation == "relu" else hidden * ndtr(hidden)
  expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
  # The tanh form of gelu is within 5e-4 of the exact one at every point.
  np.testing.assert_allclose(out.logits, expected, atol=1e-5 if activation == "relu" else 3e-3)


def test_no_hidden_layer_is_linear_in_the_pixels():
  model = mlp(num_classes=3, image_shape=(2, 2, 1), hidden=())
  variables = model.init(jax.random.key(0))
  out, _ = model.apply(
    variables, {"image": jnp.eye(4).reshape(4, 2, 2, 1)}, taps=frozenset({"logits", "hidden"})
  )
  np.testing.assert_array_equal(out.hidden, np.eye(4))
  np.testing.assert_allclose(out.logits, variables.params["head"]["kernel"], atol=1e-6)


def test_dropout_keeps_the_mean():
  model = mlp(num_classes=1, image_shape=(1, 1, 1), hidden=(4000,), dropout=0.25)
  ones = {"kernel": jnp.ones((1, 4000)), "bias": jnp.zeros(4000)}
  head = {"kernel": jnp.ones((4000, 1)) / 4000, "bias": jnp.zeros(1)}
  variables = ModelVars({"layer_0": ones, "head": head}, {})
  batch = {"image": jnp.ones((1, 1, 1, 1))}
  taps = frozenset({"logits", "hidden_states"})
  out, _ = model.apply(variables, batch, taps=taps, train=True, rng=jax.random.key(0))
  # Kept activations are 1 / 0.75; the mean has a standard deviation of 0.58 / sqrt(4000) < 0.01.
  assert set(np.unique(out.hidden_states[0].round(4))) == {np.float32(0), np.float32(1.3333)}
  np.testing.assert_allclose(out.logits, [[1.0]], atol=0.04)
