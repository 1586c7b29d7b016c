"""The small networks of objectives, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.objectives.networks import apply_mlp, init_mlp, normalize


def test_two_layers_by_hand():
  params = {
    "layer0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.5])},
    "layer1": {"kernel": jnp.array([[2.0], [3.0]]), "bias": jnp.array([1.0])},
  }
  # x = 2: relu(2.5, -1.5) = (2.5, 0); 2 * 2.5 + 1 = 6. x = -1: relu(-0.5, 1.5); 3 * 1.5 + 1 = 5.5.
  found = apply_mlp(params, jnp.array([[2.0], [-1.0]]), activation=jax.nn.relu)
  np.testing.assert_allclose(found, [[6.0], [5.5]])


def test_kernels_start_with_variance_one_over_fan_in():
  params = init_mlp(jax.random.key(0), (400, 50, 3))
  np.testing.assert_allclose(params["layer0"]["kernel"].std(), 400**-0.5, rtol=0.05)
  assert params["layer1"]["kernel"].shape == (50, 3)
  assert not params["layer0"]["bias"].any()


def test_normalize_has_mean_zero_and_variance_one():
  x = 3 + 5 * jax.random.normal(jax.random.key(0), (64, 7))
  for axis in (0, 1):
    out = normalize(x, axis=axis)
    np.testing.assert_allclose(out.mean(axis), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis), 1, rtol=1e-3)
