"""WideResNet and MobileNets: PyTorch's numbers, training, what does not fit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models import mobilenet, wide_resnet
from kdjax.models.base import ModelVars
from kdjax.train.mesh import STUDENT_RULES, batch_sharding, make_mesh, shardings

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "small_networks.npz"
SHAPE = {"num_classes": 5, "image_shape": (32, 32, 3)}


@pytest.fixture(scope="module")
def stored():
  return dict(np.load(REFERENCE, allow_pickle=False))


def drawn(stored, network):
  """The weights that the reference was made with; see `third_party/make_small_networks.py`."""
  rng, out = np.random.default_rng(40), {}
  for name, told in zip(stored[f"{network}:names"], stored[f"{network}:shapes"], strict=True):
    shape = tuple(int(n) for n in str(told).split(","))
    values = rng.standard_normal(shape)
    if str(name).endswith("running_var"):
      values = 0.5 + np.abs(values)
    elif len(shape) == 1:
      values = 0.2 * values + str(name).endswith("weight")
    else:
      values = values * (2 / np.prod(shape[1:])) ** 0.5
    out[str(name)] = values.astype(np.float32)
  return out


class Filled:
  """Trees of parameters and statistics, filled path by path."""

  def __init__(self, weights):
    self.weights, self.params, self.state = weights, {}, {}

  def put(self, tree, path, value):
    *parents, last = path.split("/")
    for parent in parents:
      tree = tree.setdefault(parent, {})
    tree[last] = jnp.asarray(value)

  def conv(self, path, name):
    kernel = self.weights[f"{name}.weight"].transpose(2, 3, 1, 0)
    self.put(self.params, f"{path}/kernel", kernel)

  def channels(self, path, name):
    """A 1x1 or depthwise convolution, as the product or the sum that ours is."""
    kernel = self.weights[f"{name}.weight"].transpose(2, 3, 1, 0)
    kernel = kernel[0, 0] if kernel.shape[0] == 1 else kernel[:, :, 0]
    self.put(self.params, f"{path}/kernel", kernel)

  def norm(self, path, name):
    for ours, theirs in {"scale": "weight", "bias": "bias"}.items():
      self.put(self.params, f"{path}/{ours}", self.weights[f"{name}.{theirs}"])
    for ours, theirs in {"mean": "running_mean", "var": "running_var"}.items():
      self.put(self.state, f"{path}/{ours}", self.weights[f"{name}.{theirs}"])

  def head(self, name):
    self.put(self.params, "head/kernel", self.weights[f"{name}.weight"].T)
    self.put(self.params, "head/bias", self.weights[f"{name}.bias"])

  def variables(self, model) -> ModelVars:
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    state = {k: v for k, v in wanted.state.items() if k not in self.state}
    given = ModelVars(self.params, self.state | state)
    assert jax.tree.map(jnp.shape, given.params) == jax.tree.map(jnp.shape, wanted.params)
    return given


def test_wide_resnet_is_mdistillers(stored):
  model = wide_resnet(**SHAPE, depth=10, widen=2)
  own = Filled(drawn(stored, "wide_resnet"))
  own.conv("stem", "conv1")
  for i in (1, 2, 3):
    block, at = f"stage{i}/block_0", f"block{i}.layer.0"
    for j in (1, 2):
      own.norm(f"{block}/norm{j}/norm", f"{at}.bn{j}")
      own.conv(f"{block}/conv{j}", f"{at}.conv{j}")
    own.conv(f"{block}/shortcut", f"{at}.convShortcut")
  own.norm("norm/norm", "bn1")
  own.head("fc")
  variables = own.variables(model)
  taps = frozenset({"logits", "features", "preactivations"})
  batch = {"image": jnp.asarray(stored["image"])}
  out = jax.jit(lambda v: model.apply(v, batch, taps=taps)[0])(variables)
  np.testing.assert_allclose(out.logits, stored["wide_resnet:logits"], atol=1e-4)
  for i in (1, 2, 3):
    for maps, kind in ((out.features, "feats"), (out.preactivations, "preact_feats")):
      wanted = stored[f"wide_resnet:{kind}{i}"]
      np.testing.assert_allclose(maps[f"stage{i}"].mean((1, 2)), wanted, atol=1e-4)


@pytest.mark.parametrize(("version", "width"), [(1, 0.125), (2, 0.5)])
def test_mobilenets_are_those_of_transformers(stored, version, width):
  model = mobilenet(**SHAPE, version=version, width=width)
  own = Filled(drawn(stored, f"mobilenet_v{version}"))
  base, number = f"mobilenet_v{version}", 0

  def layer(path, name, put):
    put(f"{path}/conv", f"{base}.{name}.convolution")
    own.norm(f"{path}/norm", f"{base}.{name}.normalization")

  def local(path, name):
    layer(path, name, own.channels)
    for tree in (own.params, own.state):
      *parents, last = f"{path}/norm".split("/")
      for parent in parents:
        tree = tree[parent]
      tree[last] = {"norm": tree[last]}

  layer("stem", "conv_stem" + (".first_conv" if version == 2 else ""), own.conv)
  stages = {1: (1, 2, 2, 6, 2), 2: (1, 2, 3, 4, 3, 3, 1)}[version]
  for i, blocks in enumerate(stages, 1):
    for j in range(blocks):
      path = f"stage{i}_block_{j}"
      if version == 1:
        local(f"{path}/local", f"layer.{2 * number}")
        local(f"{path}/mix", f"layer.{2 * number + 1}")
      else:
        at = f"layer.{number - 1}" if number else "conv_stem"
        if number:
          local(f"{path}/up", f"{at}.expand_1x1")
        local(f"{path}/local", f"{at}.conv_3x3")
        local(f"{path}/down", f"{at}.reduce_1x1")
      number += 1
  if version == 2:
    local("last", "conv_1x1")
  own.head("classifier")
  variables = own.variables(model)
  batch = {"image": jnp.asarray(stored["image"])}
  out = jax.jit(lambda v: model.apply(v, batch)[0].logits)(variables)
  wanted = stored[f"mobilenet_v{version}:logits"]
  assert np.abs(wanted).max() > 0.1
  np.testing.assert_allclose(out, wanted, atol=1e-4)


SMALL = {
  "wide_resnet": lambda **o: wide_resnet(
    num_classes=3, image_shape=(8, 8, 1), depth=10, widen=1, **o
  ),
  "mobilenet": lambda **o: mobilenet(
    num_classes=3,
    image_shape=(8, 8, 1),
    stages=((8, 1, 1), (16, 2, 2)),
    stem_stride=1,
    expand=2,
    **o,
  ),
}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_on_a_mesh_are_those_of_one_device(name):
  model = SMALL[name]()
  variables = model.init(jax.random.key(0))
  batch = {"image": jax.random.normal(jax.random.key(1), (8, 8, 8, 1))}

  def loss(params, state, batch):
    out, state = model.apply(ModelVars(params, state), batch, train=True)
    return jnp.mean(out.logits**2), state

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, state), slope = run(variables.params, variables.state, batch)
  assert np.isfinite(value)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(variables, shardings(variables, model.axes(), STUDENT_RULES, mesh))
  spread = jax.device_put(batch, batch_sharding(mesh))
  (other, moved), slopes = run(placed.params, placed.state, spread)
  np.testing.assert_allclose(value, other, rtol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
  # Batch statistics are summed in another order: some 1e-5 of the largest gradient.
  jax.tree.map(close, slope, slopes)
  jax.tree.map(close, state, moved)
  models = model, SMALL[name](dtype="bfloat16")
  both = jax.jit(lambda v: [own.apply(v, batch)[0].logits for own in models])
  full, low = both(variables)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, full, atol=0.1)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: wide_resnet(**SHAPE, depth=12), "depth"),
    (lambda: wide_resnet(**SHAPE, dropout=1.0), "dropout"),
    (lambda: mobilenet(**SHAPE, version=3), "version"),
    (lambda: mobilenet(**SHAPE, width=0), "width"),
    (lambda: mobilenet(**SHAPE, stages=((8, 1),)), r"stages\[0\]"),
    (lambda: mobilenet(**SHAPE, stem_stride=3), "stem_stride"),
  ],
)
def test_sizes_that_do_not_fit(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()
