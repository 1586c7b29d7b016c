import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdjax.models import ModelVars, vit

B, T, D, H, L, V = 3, 4, 16, 2, 2, 5
SHAPE = (8, 8, 1)
SMALL = {"num_classes": V, "image_shape": SHAPE, "patch": 4, "width": D, "heads": H, "mlp_ratio": 2}
LAYER_TAPS = ("hidden_states", "queries", "keys", "values", "attention")


def _random(model, scale):
  """Parameters of one size, without the cost of `init`."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), shapes
  )


@pytest.fixture(scope="module")
def small():
  model = vit(depth=L, **SMALL)
  return model, _random(model, 0.5)  # large enough for attention to be far from uniform


@pytest.fixture(scope="module")
def batch():
  return {"image": jax.random.normal(jax.random.key(1), (B, *SHAPE))}


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_parameter_count(pool):
  model = vit(depth=3, pool=pool, **SMALL)
  variables = jax.eval_shape(model.init, jax.random.key(0))
  patch = 16 * D + D  # 4 x 4 pixels of one channel
  positions = T * D if pool == "mean" else (T + 1) * D + D  # a class token has a vector, a position
  block = 4 * D + 4 * (D * D + D) + (D * 2 * D + 2 * D) + (2 * D * D + D)
  end = 2 * D + D * V + V
  total = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
  assert total == patch + positions + 3 * block + end


def test_axis_names():
  axes = vit(depth=L, pool="cls", **SMALL).axes().params
  P = PartitionSpec
  assert axes["position"] == axes["class_token"] == axes["embed"]["kernel"] == P(None, "embed")
  blocks = axes["blocks"]
  assert blocks["query"] == {
    "kernel": P("layers", "embed", "heads", "head_dim"),
    "bias": P("layers", "heads", "head_dim"),
  }
  assert blocks["value"]["kernel"] == P("layers", "embed", "kv_heads", "head_dim")
  assert blocks["out"]["kernel"] == P("layers", "heads", "head_dim", "embed")
  assert blocks["up"]["kernel"] == P("layers", "embed", "mlp")
  assert blocks["down"] == {"kernel": P("layers", "mlp", "embed"), "bias": P("layers", "embed")}
  assert blocks["norm_mlp"]["scale"] == P("layers", "norm")


def _norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _numpy_vit(params, image):
  """Float64, layer by layer, patches cut by slicing."""
  patches = [image[:, i : i + 4, j : j + 4].reshape(B, -1) for i in (0, 4) for j in (0, 4)]
  x = np.stack(patches, 1) @ params["embed"]["kernel"] + params["embed"]["bias"]
  x = x + params["position"]
  taps = {tap: [] for tap in LAYER_TAPS}
  for layer in range(L):
    p = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"])
    normed = _norm(x, p["norm_attention"])
    q, k, v = (
      np.einsum("btd,dhk->bthk", normed, p[n]["kernel"]) + p[n]["bias"]
      for n in ("query", "key", "value")
    )
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(D / H)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    attended = np.einsum("bhts,bshk->bthk", probs, v)
    x = x + np.einsum("bthk,hkd->btd", attended, p["out"]["kernel"]) + p["out"]["bias"]
    up = _norm(x, p["norm_mlp"]) @ p["up"]["kernel"] + p["up"]["bias"]
    up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    x = x + up @ p["down"]["kernel"] + p["down"]["bias"]
    for tap, value in zip(LAYER_TAPS, (x, q, k, v, probs), strict=True):
      taps[tap].append(value)
  hidden = _norm(x, params["norm"]).mean(1)
  logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
  return logits, hidden, {tap: np.stack(values) for tap, values in taps.items()}


def test_every_tap_equals_numpy(small, batch):
  model, variables = small
  run = jax.jit(lambda v, b: model.apply(v, b, taps=model.taps)[0])
  out = run(variables, batch)
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
  logits, hidden, taps = _numpy_vit(params, np.asarray(batch["image"], np.float64))
  np.testing.assert_allclose(out.logits, logits, atol=1e-4)
  np.testing.assert_allclose(out.embedding, hidden, atol=1e-4)
  for tap, expected in taps.items():
    np.testing.assert_allclose(getattr(out, tap), expected, atol=1e-4, err_msg=tap)
  assert out.attention.shape == (L, B, H, T, T)
  assert out.queries.shape == (L, B, T, H, D // H)
  assert np.ptp(out.attention) > 0.5  # far from uniform, or the test would not see a wrong scale


def test_fused_attention_gives_the_same_logits(small, batch):
  model, variables = small
  fused = jax.jit(lambda v: model.apply(v, batch)[0])(variables)
  taps = frozenset({"logits", "attention"})
  explicit = jax.jit(lambda v: model.apply(v, batch, taps=taps)[0])(variables)
  np.testing.assert_allclose(fused.logits, explicit.logits, atol=1e-5)


def test_segment_then_norm_pool_and_head_gives_the_logits(small, batch):
  model, variables = small
  taps = frozenset({"logits", "hidden_states", "head", "segment"})
  out, _ = model.apply(variables, batch, taps=taps)
  hidden = out.segment(out.hidden_states[0], 1, L)
  norm = variables.params["norm"]
  centred = hidden - hidden.mean(-1, keepdims=True)
  normed = centred / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
  normed = normed * norm["scale"][None, None] + norm["bias"][None, None]
  kernel, bias = out.head.kernel, out.head.bias
  np.testing.assert_allclose(normed.mean(1) @ kernel + bias[None], out.logits, atol=1e-4)


def test_class_token_is_read_from_the_first_place(small, batch):
  model = vit(depth=1, pool="cls", **SMALL)
  params = _random(model, 0.5).params
  variables = ModelVars(params | {"norm": {"scale": jnp.ones(D), "bias": jnp.zeros(D)}}, {})
  out, _ = jax.jit(lambda v: model.apply(v, batch, taps=model.taps))(variables)
  assert out.attention.shape == (1, B, H, T + 1, T + 1)
  last = out.hidden_states[-1, :, 0]
  normed = (last - last.mean(-1, keepdims=True)) / jnp.sqrt(last.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(out.hidden, normed, atol=1e-5)


def test_order_of_patches_matters_only_through_positions(small, batch):
  model, variables = small
  run = jax.jit(lambda v, image: model.apply(v, {"image": image})[0].logits)
  rolled = jnp.roll(batch["image"], 4, axis=1)  # one patch: the rows of patches change places
  assert np.abs(run(variables, batch["image"]) - run(variables, rolled)).max() > 0.01
  params = variables.params | {"position": jnp.zeros((T, D))}
  blind = ModelVars(params, {})
  np.testing.assert_allclose(run(blind, batch["image"]), run(blind, rolled), atol=1e-5)


def _scans(jaxpr):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      yield eqn
    for inner in jax.core.jaxprs_in_params(eqn.params):
      yield from _scans(inner)


@pytest.mark.parametrize("tap", ["none", *LAYER_TAPS])
def test_the_scan_gives_out_only_what_is_asked_for(small, batch, tap):
  model, variables = small
  taps = frozenset({"logits", tap} - {"none"})
  jaxpr = jax.make_jaxpr(lambda v: model.apply(v, batch, taps=taps)[0])(variables)
  (scan,) = _scans(jaxpr.jaxpr)
  shapes = [var.aval.shape for var in scan.outvars]
  width = D // H
  stacks = {"hidden_states": (L, B, T, D), "attention": (L, B, H, T, T)}
  expected = [] if tap == "none" else [stacks.get(tap, (L, B, T, H, width))]
  assert shapes == [(B, T, D), *expected]


def test_program_size_does_not_grow_with_depth(batch):
  def lines(depth):
    model = vit(depth=depth, **SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params):
      return model.apply(ModelVars(params, {}), batch)[0].logits.sum()

    return jax.jit(jax.grad(loss)).lower(variables.params).as_text().count("\n")

  assert lines(2) == lines(8)


def test_remat_changes_memory_and_not_gradients():
  batch = {"image": jax.random.normal(jax.random.key(1), (64, 8, 8, 1))}
  gradients, memory, params = {}, {}, None
  for remat in ("none", "mlp", "full"):
    model = vit(num_classes=V, image_shape=SHAPE, width=16, depth=6, heads=2, remat=remat)
    params = params or _random(model, 0.2).params

    def loss(params, model=model):
      out, _ = model.apply(ModelVars(params, {}), batch, train=True)
      return (out.logits**2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    gradients[remat] = compiled(params)
    memory[remat] = compiled.memory_analysis().temp_size_in_bytes
  for remat in ("mlp", "full"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
      gradients[remat],
      gradients["none"],
    )
  assert memory["mlp"] < 0.8 * memory["none"]
  assert memory["full"] < 0.8 * memory["mlp"]
