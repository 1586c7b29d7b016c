"""TinyViT: the official model's numbers, its sizes, and its scaling rule."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.base import ModelVars
from kdjax.models.tinyvit import TinyViTSpec, tinyvit, tinyvit_model
from kdjax.models.tinyvit_scaling import contract, neighbours, parameters, scale_down

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "tinyvit" / "model.npz"
SPEC = TinyViTSpec(
  (8, 12, 16, 24), (2, 2, 1, 1), (1, 3, 2, 3), (4, 3, 4, 2), 3, 5, expand=2.0, mlp_ratio=2.0
)
TINY = {"widths": (8, 12), "depths": (1, 2), "heads": (1, 3), "windows": (2, 3), "patch": 2}


def _norm(weights, name):
  return (
    {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]},
    {"mean": weights[f"{name}.running_mean"], "var": weights[f"{name}.running_var"]},
  )


def _conv(weights, name):
  """(parameters, statistics) of a convolution and its norm, in the form of its size."""
  kernel = weights[f"{name}.c.weight"].transpose(2, 3, 1, 0)
  if kernel.shape[0] == 1:
    kernel = kernel[0, 0]
  elif kernel.shape[2] == 1:
    kernel = kernel[:, :, 0]
  params, state = _norm(weights, f"{name}.bn")
  return {"conv": {"kernel": kernel}, "norm": params}, {"norm": state}


def _block(weights, at, stage):
  if stage == 0:
    parts = {"up": "conv1", "mix": "conv2", "down": "conv3"}
    both = {own: _conv(weights, f"{at}.{theirs}") for own, theirs in parts.items()}
    return tuple({own: pair[i] for own, pair in both.items()} for i in range(2))
  local, statistics = _conv(weights, f"{at}.local_conv")

  def affine(name, kernel="kernel"):
    weight = weights[f"{name}.weight"]
    return {kernel: weight.T if weight.ndim == 2 else weight, "bias": weights[f"{name}.bias"]}

  heads = SPEC.heads[stage]
  width = SPEC.widths[stage]
  joint = weights[f"{at}.attn.qkv.weight"].reshape(heads, 3, width // heads, width)
  bias = weights[f"{at}.attn.qkv.bias"].reshape(heads, 3, width // heads)
  attention = {
    name: {"kernel": joint[:, i].transpose(2, 0, 1), "bias": bias[:, i]}
    for i, name in enumerate(("query", "key", "value"))
  }
  out = affine(f"{at}.attn.proj")
  out["kernel"] = out["kernel"].reshape(heads, width // heads, width)
  attention |= {"norm": affine(f"{at}.attn.norm", "scale"), "out": out}
  attention["offset_bias"] = weights[f"{at}.attn.attention_biases"]
  mlp = {"up": affine(f"{at}.mlp.fc1"), "down": affine(f"{at}.mlp.fc2")}
  norm = affine(f"{at}.mlp.norm", "scale")
  return {"attention": attention, "local": local, "norm_mlp": norm} | mlp, {"local": statistics}


def converted(stored):
  """The official weights in the form of ours."""
  weights = {k.removeprefix("weight:"): v for k, v in stored.items() if k.startswith("weight:")}
  params, state = {}, {}

  def put(name, pair):
    params[name], state[name] = pair

  for i, name in enumerate(("stem1", "stem2")):
    kernel, statistics = _conv(weights, f"patch_embed.seq.{2 * i}")
    put(name, (kernel, statistics))
  for stage, depth in enumerate(SPEC.depths):
    blocks = [_block(weights, f"layers.{stage}.blocks.{i}", stage) for i in range(depth)]
    put(
      f"stage{stage + 1}",
      jax.tree.map(lambda *parts: np.stack(parts), *blocks),
    )
    if stage + 1 < len(SPEC.depths):
      at = f"layers.{stage}.downsample"
      parts = {"widen": "conv1", "shrink": "conv2", "mix": "conv3"}
      both = {own: _conv(weights, f"{at}.{theirs}") for own, theirs in parts.items()}
      put(f"merge{stage + 1}", tuple({k: pair[i] for k, pair in both.items()} for i in range(2)))
  params["norm"] = {"scale": weights["norm_head.weight"], "bias": weights["norm_head.bias"]}
  params["head"] = {"kernel": weights["head.weight"].T, "bias": weights["head.bias"]}
  return params, state


def test_outputs_are_those_of_the_official_model():
  stored = dict(np.load(REFERENCE, allow_pickle=False))
  model = tinyvit_model(SPEC, (64, 64, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0))
  params, state = converted(stored)
  assert jax.tree.structure(params) == jax.tree.structure(variables.params)
  given = ModelVars(*jax.tree.map(jnp.asarray, (params, state)))
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), given.params, variables.params
  )
  batch = {"image": jnp.asarray(stored["image"])}
  taps = frozenset({"logits", "features"})
  out, _ = jax.jit(lambda v: model.apply(v, batch, taps=taps))(given)
  for i in range(1, 5):
    scale = np.abs(stored[f"stage{i}"]).max()
    np.testing.assert_allclose(
      out.features[f"stage{i}"] / scale, stored[f"stage{i}"] / scale, atol=1e-5
    )
  np.testing.assert_allclose(out.logits, stored["logits"], atol=1e-4)
  assert parameters(SPEC, (64, 64, 3)) == stored["parameters"]


@pytest.mark.parametrize("size", ["5m", "21m"])
def test_the_three_published_sizes(size):
  widths = {"5m": (64, 128, 160, 320), "11m": (64, 128, 256, 448), "21m": (96, 192, 384, 576)}
  heads = {"5m": (2, 4, 5, 10), "11m": (2, 4, 8, 14), "21m": (3, 6, 12, 18)}
  spec = TinyViTSpec(widths[size], (2, 2, 6, 2), heads[size], (7, 7, 14, 7), 3, 1000)
  stored = np.load(REFERENCE, allow_pickle=False)[f"parameters_{size}"]
  assert parameters(spec, (224, 224, 3)) == stored


def test_it_trains_drops_paths_and_computes_in_bfloat16():
  model = tinyvit(num_classes=3, image_shape=(8, 8, 1), drop_path=0.5, **TINY)
  variables = model.init(jax.random.key(0))
  batch = {"image": jax.random.normal(jax.random.key(1), (4, 8, 8, 1))}

  def loss(params, rng):
    out, state = model.apply(variables._replace(params=params), batch, train=True, rng=rng)
    return jnp.mean(out.logits**2), (out.logits, state)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, (one, state)), slope = run(variables.params, jax.random.key(2))
  (_, (two, _)), _ = run(variables.params, jax.random.key(3))
  assert not np.allclose(one, two)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
  moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state, variables.state)
  assert any(jax.tree.leaves(moved))
  low = tinyvit(num_classes=3, image_shape=(8, 8, 1), dtype="bfloat16", **TINY)
  full = tinyvit(num_classes=3, image_shape=(8, 8, 1), **TINY)
  out, wanted = (m.apply(variables, batch)[0].logits for m in (low, full))
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, wanted, atol=0.05)


def test_a_contraction_scales_every_size():
  parent = TinyViTSpec((64, 128, 256), (2, 4, 2), (2, 4, 8), (7, 14, 7), 3, 10)
  child = contract(parent, {"width": 0.5, "depth": (1.0, 0.5, 1.0), "window": 0.5, "expand": 0.75})
  assert (child.widths, child.heads) == ((32, 64, 128), (1, 2, 4))
  assert (child.depths, child.windows) == ((2, 2, 2), (4, 7, 4))
  assert (child.expand, child.mlp_ratio) == (3.0, 4.0)
  # Smaller heads of the same width are more of them.
  finer = contract(parent, {"head_dim": 0.5})
  assert (finer.widths, finer.heads) == (parent.widths, (4, 8, 16))
  assert contract(parent, {}) == parent
  for factors, message in (
    ({"height": 0.5}, "no factor 'height'"),
    ({"width": 1.5}, r"factors\['width'\] is 1.5"),
    ({"depth": (0.5, 0.5)}, "3 such numbers"),
  ):
    with pytest.raises(KdjaxError, match=message):
      contract(parent, factors)


def test_scaling_down_keeps_the_best_within_each_budget():
  parent, shape = TinyViTSpec((32, 64), (2, 4), (2, 4), (7, 7), 1, 10), (32, 32, 1)
  whole = parameters(parent, shape)
  budgets = [int(0.8 * whole), int(0.5 * whole)]
  # Depth is worth more than width to this score, so that the width is given up.
  found = scale_down(
    parent, shape, budgets=budgets, score=lambda s: 1000 * sum(s.depths) + sum(s.widths)
  )
  assert len(found) == 2
  for spec, budget in zip(found, budgets, strict=True):
    assert parameters(spec, shape) <= budget
    assert sum(spec.depths) == 6
    assert sum(spec.widths) + spec.mlp_ratio < sum(parent.widths) + parent.mlp_ratio
  slow = [s for s in neighbours(parent, 0.75) if s.widths != parent.widths]
  assert slow
  (quick,) = scale_down(
    parent,
    shape,
    budgets=budgets[:1],
    score=lambda s: sum(s.depths),
    min_throughput=1.0,
    throughput=lambda s: float(s.widths == parent.widths),
  )
  assert quick.widths == parent.widths
  with pytest.raises(KdjaxError, match="budgets is"):
    scale_down(parent, shape, budgets=[1, 2], score=lambda s: 0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"heads": (1, 5)}, r"heads\[1\]"),
    ({"patch": 3}, "patch"),
    ({"widths": (9, 12)}, r"widths\[0\]"),
    ({"windows": (2,)}, "windows"),
    ({"mlp_ratio": 0}, "mlp_ratio"),
  ],
)
def test_sizes_that_do_not_fit(change, message):
  with pytest.raises(KdjaxError, match=message):
    tinyvit(num_classes=3, image_shape=(8, 8, 1), **(TINY | change))
