"""What every model holds to: taps, types, names of axes, transformations, errors."""

import doctest
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.outputs import TAPS

SHAPE = (8, 8, 2)
CLASSES = 10
SMALL = {
  "convnext": {"widths": (4, 8), "depths": (1, 2), "patch": 2},
  "imagenet_resnet": {"widths": (8, 16), "depths": (1, 2), "stem": 4},
  "mlp": {"hidden": (16, 12)},
  "mlp_mixer": {"patch": 4, "width": 16, "depth": 3, "token_width": 8, "mlp_width": 32},
  "resnet": {"depth": 8, "width": 4},
  "swin": {"width": 8, "depths": (2, 2), "heads": (2, 4), "patch": 1, "window": 4},
  "vit": {"patch": 4, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2},
}
# Models of text and checkpoints have tests of their own.
OTHERS = {"decoder", "pretrained", "pretrained_image", "seq2seq", "text_classifier"}
OTHERS |= {"clip", "clip_image_tower", "open_vocabulary", "pretrained_clip"}
OTHERS |= {"drive_adapter", "driving_policy"}
OTHERS |= {"robustified", "segformer"}
OTHERS |= {"masked_autoencoder", "mobilenet", "tinyvit", "wide_resnet"}
# Mesh axes of the logical names; the batch is split over the first two axes of the mesh.
RULES = dict.fromkeys(("mlp", "heads", "kv_heads", "vocab"), "tensor") | {"embed": "fsdp"}
EVERY = pytest.mark.parametrize("name", sorted(SMALL))


def build(name, **kwargs):
  return getattr(models, name)(num_classes=CLASSES, image_shape=SHAPE, **SMALL[name], **kwargs)


@pytest.fixture(scope="module")
def made():
  """name -> (model, variables), built once."""
  return {name: (m := build(name), m.init(jax.random.key(0))) for name in SMALL}


@pytest.fixture(scope="module")
def batch():
  return {"image": jax.random.normal(jax.random.key(1), (8, *SHAPE))}


@pytest.fixture(scope="module")
def full(made, batch):
  """name -> all outputs but attention, which changes the way logits are computed."""
  outs = {}
  for name, (model, variables) in made.items():
    run = jax.jit(lambda v, b, model=model: model.apply(v, b, taps=model.taps - {"attention"}))
    outs[name] = run(variables, batch)
  return outs


def test_names_of_constructors():
  assert sorted(set(models.__all__) - OTHERS) == sorted(SMALL)


@EVERY
def test_docstring_example(name):
  result = doctest.testmod(sys.modules[getattr(models, name).__module__])
  assert result.attempted > 0
  assert result.failed == 0


@EVERY
def test_only_the_taps_asked_for_are_filled(name, made, batch, full):
  model, variables = made[name]
  out, _ = full[name]
  for tap in TAPS:
    assert (getattr(out, tap) is not None) == (tap in model.taps - {"attention"}), tap
  alone, _ = jax.eval_shape(
    lambda v: model.apply(v, batch, taps=frozenset({"embedding"})), variables
  )
  assert [tap for tap in TAPS if getattr(alone, tap) is not None] == ["embedding"]


@EVERY
def test_eager_equals_jit_and_default_tap_is_logits(name, made, batch, full):
  model, variables = made[name]
  out, _ = model.apply(variables, batch)
  np.testing.assert_allclose(out.logits, full[name][0].logits, atol=1e-5)


@EVERY
def test_head_reads_hidden(name, full):
  out, _ = full[name]
  kernel, bias = out.head.kernel, out.head.bias
  assert out.logits.shape == (8, CLASSES)
  np.testing.assert_allclose(out.hidden @ kernel + bias[None], out.logits, atol=1e-5)
  np.testing.assert_array_equal(out.hidden, out.embedding)


def test_the_mean_of_two_heads_is_one_head(batch):
  model = build("vit", pool="distilled")
  variables = model.init(jax.random.key(0))
  names = ("class_token", "distillation_token")
  drawn = {n: jax.random.normal(jax.random.key(i), (1, 16)) for i, n in enumerate(names)}
  params = variables.params | drawn
  out, _ = model.apply(variables._replace(params=params), batch, taps=model.taps - {"attention"})
  assert out.hidden.shape == (8, 32) and out.hidden_states.shape == (3, 8, 6, 16)
  np.testing.assert_allclose(out.head.logits(out.hidden), out.logits, atol=1e-5)
  second = params["distillation_head"]
  wanted = out.hidden[:, 16:] @ second["kernel"] + second["bias"][None]
  np.testing.assert_allclose(out.distillation_logits, wanted, atol=1e-5)
  assert np.abs(out.distillation_logits - out.logits).max() > 0.01


@EVERY
def test_unknown_tap(name, made, batch):
  model, variables = made[name]
  with pytest.raises(KdjaxError, match="signal"):
    model.apply(variables, batch, taps=frozenset({"logits", "signal"}))


@EVERY
def test_evaluation_leaves_state_alone(name, made, full):
  jax.tree.map(np.testing.assert_array_equal, made[name][1].state, full[name][1])


@EVERY
def test_init_follows_the_key(name, made):
  model, variables = made[name]
  again, other = model.init(jax.random.key(0)), model.init(jax.random.key(7))
  jax.tree.map(np.testing.assert_array_equal, variables, again)
  assert np.abs(variables.params["head"]["kernel"] - other.params["head"]["kernel"]).max() > 0.01


@EVERY
def test_variables_are_float32_under_string_keys(name):
  variables = jax.eval_shape(build(name, dtype="bfloat16").init, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(tuple(variables)):
    assert leaf.dtype == jnp.float32, path
    assert all(isinstance(step.key, str) for step in path[1:]), path


@EVERY
def test_axes_name_every_dimension(name, made):
  model, variables = made[name]
  axes = model.axes()
  ranks = jax.tree.map(lambda leaf, spec: (leaf.ndim, len(spec)), variables, axes)
  for path, (ndim, length) in jax.tree_util.tree_leaves_with_path(
    ranks, is_leaf=lambda x: type(x) is tuple and len(x) == 2
  ):
    assert ndim == length, path
  assert axes.params["head"] == {
    "kernel": PartitionSpec("embed", "vocab"),
    "bias": PartitionSpec("vocab"),
  }
  known = {"embed", "mlp", "heads", "kv_heads", "head_dim", "vocab", "layers", "norm", None}
  assert {axis for spec in jax.tree.leaves(axes) for axis in spec} <= known


@EVERY
def test_bfloat16_is_close_to_float32(name, made, batch, full):
  model = build(name, dtype="bfloat16")
  out, _ = jax.jit(lambda v, b: model.apply(v, b))(made[name][1], batch)
  assert out.logits.dtype == jnp.float32
  expected = full[name][0].logits
  # bfloat16 keeps 8 bits: errors near 2^-8 an operation, against logits of order 1.
  np.testing.assert_allclose(out.logits, expected, atol=0.05)
  assert np.abs(out.logits - expected).max() > 1e-6


@EVERY
def test_vmap_over_parameters_equals_separate_calls(name, made, batch, full):
  model, variables = made[name]
  other = model.init(jax.random.key(2))
  run = jax.jit(lambda v: model.apply(v, batch)[0].logits)
  both = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, other)
  mapped = jax.jit(jax.vmap(lambda v: model.apply(v, batch)[0].logits))(both)
  np.testing.assert_allclose(mapped[0], full[name][0].logits, atol=1e-5)
  np.testing.assert_allclose(mapped[1], run(other), atol=1e-5)


def train_step(model):
  def loss(params, state, batch):
    out, state = model.apply(models.ModelVars(params, state), batch, train=True)
    return -jax.nn.log_softmax(out.logits)[:, 0].mean(), state

  return jax.value_and_grad(loss, has_aux=True)


@EVERY
def test_sharded_equals_unsharded_in_value_gradient_and_state(name, made, batch):
  model, variables = made[name]
  step = jax.jit(train_step(model))
  expected = step(*variables[:2], batch)
  gradients = jax.tree.leaves(expected[1])
  assert all(np.isfinite(g).all() for g in gradients)

  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

  def place(array, *mesh_axes):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*mesh_axes)))

  sharded = jax.tree.map(
    lambda leaf, spec: place(leaf, *(RULES.get(axis) for axis in spec)), variables, model.axes()
  )
  kernel = sharded.params["head"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 2, CLASSES // 2)
  given = step(*sharded[:2], {"image": place(batch["image"], ("data", "fsdp"))})
  # All gradients are compared: with kernels split along both channel axes those of a convolution
  # were wrong here. And batch statistics: they are those of the global batch, not of one device.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, expected)


@EVERY
@pytest.mark.parametrize(
  "change, said",
  [
    ({"num_classes": 0}, "'num_classes' is 0"),
    ({"image_shape": (8, 8)}, r"'image_shape' is \(8, 8\)"),
    ({"image_shape": (8, 0, 1)}, "'width' is 0"),
    ({"dtype": "float16"}, r"'dtype' is 'float16'; wanted one of \['bfloat16', 'float32'\]"),
  ],
)
def test_bad_arguments_of_all(name, change, said):
  arguments = {"num_classes": CLASSES, "image_shape": SHAPE} | change
  with pytest.raises(KdjaxError, match=said):
    getattr(models, name)(**arguments)


@pytest.mark.parametrize(
  "name, change, said",
  [
    ("mlp", {"hidden": 32}, "'hidden' is 32"),
    ("mlp", {"hidden": (8, 0)}, r"'hidden\[1\]' is 0"),
    ("mlp", {"activation": "tanh"}, "'activation' is 'tanh'"),
    ("mlp", {"dropout": 1.0}, "'dropout' is 1.0"),
    ("convnext", {"widths": (4,)}, r"'depths' is \(1, 2\); wanted a list of integers"),
    ("convnext", {"patch": 8}, r"multiples of 16"),
    ("convnext", {"drop_path": 1.0}, "'drop_path' is 1.0"),
    ("imagenet_resnet", {"block": "wide"}, "'block' is 'wide'"),
    ("imagenet_resnet", {"widths": (6, 16)}, r"'widths\[0\]' is 6; wanted a multiple of 4"),
    ("mlp_mixer", {"patch": 3}, "multiples of 3"),
    ("swin", {"depths": (2, 3)}, r"'depths\[1\]' is 3; wanted an even number"),
    ("swin", {"heads": (2, 3)}, r"'heads\[1\]' is 3; wanted a divisor of the channels, 16"),
    ("resnet", {"depth": 10}, "'depth' is 10"),
    ("resnet", {"depth": 2}, "'depth' is 2"),
    ("resnet", {"width": 4.0}, "'width' is 4.0"),
    ("vit", {"patch": 3}, "'patch' is 3; wanted a divisor"),
    ("vit", {"heads": 3}, "'heads' is 3; wanted a divisor of width, 16"),
    ("vit", {"depth": 0}, "'depth' is 0"),
    ("vit", {"dropout": -0.1}, "'dropout' is -0.1"),
    ("vit", {"pool": "max"}, "'pool' is 'max'"),
    ("vit", {"remat": "dots"}, "'remat' is 'dots'"),
  ],
)
def test_bad_arguments(name, change, said):
  arguments = SMALL[name] | change
  with pytest.raises(KdjaxError, match=said):
    getattr(models, name)(num_classes=CLASSES, image_shape=SHAPE, **arguments)


def test_bad_batch(made):
  model, variables = made["mlp"]
  with pytest.raises(KdjaxError, match=r"no key 'image'.*\['ids'\]"):
    model.apply(variables, {"ids": jnp.zeros((2, 3), jnp.int32)})
  with pytest.raises(KdjaxError, match=r"\(2, 8, 8, 1\); wanted \[B, 8, 8, 2\]"):
    model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))})


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_dropout_follows_the_key_of_the_call(name, made, batch, full):
  model, variables = build(name, dropout=0.5), made[name][1]
  assert jax.tree.structure(model.axes().params) == jax.tree.structure(variables.params)
  assert not jax.tree.leaves(model.axes().state)  # no key and no counter is carried

  run = jax.jit(lambda key: model.apply(variables, batch, train=True, rng=key)[0].logits)
  first, again, other = run(jax.random.key(3)), run(jax.random.key(3)), run(jax.random.key(4))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01
  evaluated, _ = jax.jit(lambda key: model.apply(variables, batch, rng=key))(jax.random.key(3))
  np.testing.assert_allclose(evaluated.logits, full[name][0].logits, atol=1e-5)
  with pytest.raises(KdjaxError, match=r"dropout=0\.5 wants rng="):
    model.apply(variables, batch, train=True)


@pytest.mark.parametrize("name", ["convnext", "swin"])
def test_stochastic_depth_leaves_out_whole_branches_of_an_example(name, made, batch, full):
  model, variables = build(name, drop_path=0.9), made[name][1]
  run = jax.jit(lambda key: model.apply(variables, batch, train=True, rng=key)[0].logits)
  first, again, other = run(jax.random.key(3)), run(jax.random.key(3)), run(jax.random.key(4))
  np.testing.assert_array_equal(first, again)
  rows = np.abs(first - other).max(-1)
  assert rows.max() > 1e-4
  np.testing.assert_allclose(
    model.apply(variables, batch)[0].logits, full[name][0].logits, atol=1e-5
  )
  with pytest.raises(KdjaxError, match="wants rng="):
    model.apply(variables, batch, train=True)


@pytest.mark.parametrize("name", ["mlp", "mlp_mixer", "vit"])
def test_segment_runs_layers_between_hidden_states(name, full):
  out, _ = full[name]
  states = out.hidden_states
  depth, segment = len(states), jax.jit(out.segment, static_argnums=(1, 2))
  for a in range(depth):
    for b in range(a, depth):
      np.testing.assert_allclose(segment(states[a], a + 1, b + 1), states[b], atol=1e-5)
  with pytest.raises(KdjaxError, match=f"start=1, stop={depth + 1}.*<= {depth}"):
    out.segment(states[0], 1, depth + 1)
  with pytest.raises(KdjaxError, match="start=2, stop=1"):
    out.segment(states[0], 2, 1)


def test_segment_of_swin_runs_stages_between_maps(full):
  out, _ = full["swin"]
  run = jax.jit(out.segment, static_argnums=(1, 2))
  first, second = (out.features[name] for name in ("stage1", "stage2"))
  np.testing.assert_allclose(run(first, 1, 2), second, atol=1e-5)
  np.testing.assert_array_equal(run(first, 1, 1), first)
  with pytest.raises(KdjaxError, match=r"start=1, stop=3.*<= 2"):
    out.segment(first, 1, 3)


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_segment_passes_gradient_to_hidden_and_none_to_weights(name, made, batch, full):
  model, variables = made[name]
  hidden = full[name][0].hidden_states[0]

  @jax.jit
  @jax.grad
  def gradients(given):
    variables, hidden = given
    out, _ = model.apply(variables, batch, taps=frozenset({"segment"}))
    return (out.segment(hidden, 1, 2) ** 2).sum()

  of_variables, of_hidden = gradients((variables, hidden))
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_variables))
  assert np.abs(of_hidden).max() > 0.1
