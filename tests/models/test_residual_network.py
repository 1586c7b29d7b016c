import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import ModelVars, resnet


def _random(model, seed=0):
  """Variables with statistics, scales and biases of their own, without the cost of `init`."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if leaf.ndim == 4:
      scale = np.sqrt(2 / np.prod(leaf.shape[:3]))
      return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
    return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)

  return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def _count(model):
  variables = jax.eval_shape(model.init, jax.random.key(0))
  return tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in variables[:2])


@pytest.mark.parametrize("depth", [8, 14])
def test_parameter_count(depth):
  model = resnet(num_classes=10, image_shape=(8, 8, 1), depth=depth, width=4)
  n = (depth - 2) // 6
  # Kernels: 3x3 in the blocks, 1x1 in the two shortcuts. A norm has 2 parameters a channel.
  stem = 9 * 1 * 4
  blocks = 9 * (4 * 4 + 4 * 4) * n
  for c in (8, 16):
    blocks += 9 * (c // 2 * c + c * c) + c // 2 * c + (n - 1) * 9 * 2 * c * c
  channels_normed = 4 + 2 * n * (4 + 8 + 16) + 8 + 16
  head = 16 * 10 + 10
  assert _count(model) == (stem + blocks + 2 * channels_normed + head, 2 * channels_normed)


def test_parameter_count_of_the_published_form():
  # Depth 20 and width 16: 0.27 million.
  params, _ = _count(resnet(num_classes=10, image_shape=(32, 32, 3), depth=20, width=16))
  assert params == 272474


def _conv(x, kernel, stride):
  k = kernel.shape[0]
  pad = k // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  rows = (x.shape[1] - k) // stride + 1
  out = 0.0
  for i in range(k):
    for j in range(k):
      taken = x[:, i : i + stride * rows : stride, j : j + stride * rows : stride]
      out = out + taken[:, :rows, :rows] @ kernel[i, j]
  return out


def _conv_norm(x, params, state, stride):
  x = _conv(x, params["conv"]["kernel"], stride)
  norm, stats = params["norm"], state["norm"]
  return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]


def _numpy_features(params, state, x):
  x = np.maximum(_conv_norm(x, params["stem"], state["stem"], 1), 0)
  features, before = {}, {}
  for stage in ("stage1", "stage2", "stage3"):
    for name in sorted(params[stage]):
      p, s = params[stage][name], state[stage][name]
      stride = 2 if "shortcut" in p else 1
      branch = np.maximum(_conv_norm(x, p["first"], s["first"], stride), 0)
      branch = _conv_norm(branch, p["second"], s["second"], 1)
      skip = _conv_norm(x, p["shortcut"], s["shortcut"], stride) if "shortcut" in p else x
      before[stage] = skip + branch
      x = np.maximum(skip + branch, 0)
    features[stage] = x
  return features, before


@pytest.mark.parametrize("side, depth", [(7, 14), (8, 8)])
def test_evaluation_equals_numpy(side, depth):
  model = resnet(num_classes=3, image_shape=(side, side, 2), depth=depth, width=3)
  variables = _random(model)
  image = jax.random.normal(jax.random.key(1), (2, side, side, 2))
  taps = frozenset({"logits", "features", "preactivations", "embedding"})
  out, _ = jax.jit(lambda v, x: model.apply(v, {"image": x}, taps=taps))(variables, image)

  params, state = jax.tree.map(lambda a: np.asarray(a, np.float64), tuple(variables[:2]))
  features, before = _numpy_features(params, state, np.asarray(image, np.float64))
  sides = {"stage1": side, "stage2": (side + 1) // 2, "stage3": (side + 3) // 4}
  for i, (stage, expected) in enumerate(features.items()):
    assert out.features[stage].shape == (2, sides[stage], sides[stage], 3 * 2**i)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.features[stage] / scale, expected / scale, atol=1e-5)
    assert (before[stage] < 0).any()
    np.testing.assert_allclose(out.preactivations[stage] / scale, before[stage] / scale, atol=1e-5)
  pooled = features["stage3"].mean((1, 2))
  logits = pooled @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(out.embedding, pooled, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


def test_batch_statistics_by_hand():
  model = resnet(num_classes=2, image_shape=(2, 2, 1), depth=8, width=1)
  variables = _random(model)
  # A stem that hands its input on: 1 in the middle of the kernel.
  kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
  stem = variables.params["stem"] | {"conv": {"kernel": kernel}}
  fresh = variables.state | {"stem": {"norm": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}}
  variables = ModelVars(variables.params | {"stem": stem}, fresh)
  # One image of 0, one of 4: over the batch the mean is 2 and the biased variance 4.
  batch = {"image": jnp.array([0.0, 4.0]).reshape(2, 1, 1, 1) * jnp.ones((2, 2, 2, 1))}
  train = jax.jit(lambda v: model.apply(v, batch, train=True)[1])
  state = train(variables)
  # From mean 0 and variance 1: 0.9 x 0 + 0.1 x 2 = 0.2, 0.9 x 1 + 0.1 x 4 = 1.3
  np.testing.assert_allclose(state["stem"]["norm"]["mean"], [0.2], atol=1e-6)
  np.testing.assert_allclose(state["stem"]["norm"]["var"], [1.3], atol=1e-6)
  state = train(ModelVars(variables.params, state))
  # 0.9 x 0.2 + 0.1 x 2 = 0.38, 0.9 x 1.3 + 0.1 x 4 = 1.57
  np.testing.assert_allclose(state["stem"]["norm"]["mean"], [0.38], atol=1e-6)
  np.testing.assert_allclose(state["stem"]["norm"]["var"], [1.57], atol=1e-6)


def test_bfloat16_keeps_statistics_in_float32():
  model = resnet(num_classes=2, image_shape=(4, 4, 1), width=2, dtype="bfloat16")
  variables = _random(model)
  batch = {"image": jax.random.normal(jax.random.key(1), (4, 4, 4, 1))}
  taps = frozenset({"features"})
  out, state = jax.jit(lambda v: model.apply(v, batch, taps=taps, train=True))(variables)
  assert out.features["stage1"].dtype == jnp.bfloat16
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32"}
