"""The small networks of objectives, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.objectives.networks import (
  apply_conv,
  apply_mlp,
  batch_norm,
  init_conv,
  init_mlp,
  init_norm,
  normalize,
)


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


def test_a_convolution_by_hand():
  # Pairs of neighbours are added and every second sum kept; transposed, a value is spread.
  layer = {"kernel": jnp.array([1.0, 1.0]).reshape(1, 2, 1, 1), "bias": jnp.array([0.5])}
  x = jnp.arange(6.0).reshape(1, 1, 6, 1)
  np.testing.assert_allclose(apply_conv(layer, x).ravel(), [1.5, 3.5, 5.5, 7.5, 9.5])
  wide = jnp.broadcast_to(x, (1, 2, 6, 1))
  np.testing.assert_allclose(apply_conv(layer, wide, stride=2).ravel(), [1.5, 5.5, 9.5])
  spread = apply_conv({"kernel": jnp.ones((1, 1, 1, 1))}, x[:, :, :3], dilation=2)
  np.testing.assert_allclose(spread.ravel(), [0.0, 0.0, 1.0, 0.0, 2.0])
  start = init_conv(jax.random.key(0), (3, 3), 20, 30)["kernel"]
  np.testing.assert_allclose(start.std(), 180**-0.5, rtol=0.05)


def test_batch_norm_counts_the_examples_that_count():
  x = 3 + 5 * jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
  where = jnp.arange(8) < 5
  layer = init_norm(2) | {"bias": jnp.array([0.0, 7.0])}
  out = batch_norm(layer, x, where)[:5]
  np.testing.assert_allclose(out.mean((0, 1, 2)), [0.0, 7.0], atol=1e-4)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1.0, rtol=1e-3)
  assert np.isfinite(batch_norm(layer, x, where & False)).all()
