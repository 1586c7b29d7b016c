"""TransKD against the official fusion and losses, and its early refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import trans_kd
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.objectives.trans_kd import PATCHES, PRESETS, STAGES
from kdjax.outputs import Outputs

FOLDER = Path(__file__).parents[2] / "third_party" / "reference"


def read(name):
  return dict(np.load(FOLDER / f"{name}.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def reference():
  return read("trans_kd")


def official(reference, kind: str):
  """The weights, or their gradients, in our names; their blocks run from deep to shallow."""
  own = {k.removeprefix(f"{kind}/"): v for k, v in reference.items() if k.startswith(f"{kind}/")}
  params = {}
  for i in range(4):
    start = f"skfs.{3 - i}"

    def conv_norm(name, start=start):
      norm = {"scale": own[f"{start}.{name}.1.weight"], "bias": own[f"{start}.{name}.1.bias"]}
      conv = {"kernel": own[f"{start}.{name}.0.weight"].transpose(2, 3, 1, 0)}
      return {"conv": conv, "norm": norm}

    def dense(name, start=start):
      layer = {"kernel": own[f"{start}.{name}.weight"][:, :, 0, 0].T}
      bias = own.get(f"{start}.{name}.bias")
      return {"layer0": layer | ({} if bias is None else {"bias": bias})}

    block = {"in": conv_norm("conv1"), "out": conv_norm("conv2")}
    if i < 3:
      norm = {"scale": own[f"{start}.fc.1.weight"], "bias": own[f"{start}.fc.1.bias"]}
      block |= {"squeeze": dense("fc.0"), "squeeze_norm": norm}
      block |= {"own": dense("fcs.0"), "other": dense("fcs.1")}
    params[f"fuse{i}"] = block
    linear = f"embed{i + 1}_linearproject"
    kernel = {"kernel": own[f"{linear}.weight"].T, "bias": own[f"{linear}.bias"]}
    params[f"patch{i}"] = {"layer0": kernel}
  if "attn4.qkv.weight" in own:
    params["mixer"] = official_mixer(own)
  if "fuse_weights.0" in own:
    shares = [own[f"fuse_weights.{i}"][0] for i in range(8)]
    params["shares"] = np.stack(shares[:4])
    for i in range(4):
      layer = f"patch_embed{i + 1}"
      conv = own[f"{layer}.proj.weight"].transpose(2, 3, 1, 0), own[f"{layer}.proj.bias"]
      norm = own[f"{layer}.norm.weight"], own[f"{layer}.norm.bias"]
      params[f"assistant{i}"] = {
        "conv": dict(zip(("kernel", "bias"), conv, strict=True)),
        "norm": dict(zip(("scale", "bias"), norm, strict=True)),
        "share": shares[4 + i],
      }
  return jax.tree.map(jnp.asarray, params)


def official_mixer(own):
  def conv(name):
    kernel = own[f"{name}.weight"].transpose(2, 1, 0)[:, None]
    return {"kernel": kernel, "bias": own[f"{name}.bias"]}

  out = {"kernel": own["attn4.proj.weight"].T, "bias": own["attn4.proj.bias"]}
  return {
    "qkv": {"layer0": {"kernel": own["attn4.qkv.weight"].T}},
    "out": {"layer0": out},
    "value": conv("conv1"),
    "gate": conv("conv2"),
    "shares": np.concatenate([own["atten_weight"], own["conv_weight"]]),
  }


def sides(reference, maps: str, patches: str):
  found = {}
  for i in range(4):
    found[STAGES[i]] = reference[f"{maps}{i}"].transpose(0, 2, 3, 1)
    side = found[STAGES[i]].shape[1]
    found[PATCHES[i]] = reference[f"{patches}{i}"].reshape(3, side, side, -1)
  return jax.tree.map(jnp.asarray, found)


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_gradients_are_the_official_ones(preset):
  reference = read("trans_kd" if preset == "base" else f"trans_kd_{preset}")
  batch = {"image": reference["image"].transpose(0, 2, 3, 1)} if preset == "ea" else {}
  teacher = Outputs(features=sides(reference, "told", "told_patches"))
  objective = trans_kd(ce_weight=0.0, middle=10, preset=preset, heads=3)
  given = official(reference, "weights"), sides(reference, "own", "patches")
  shapes = jax.eval_shape(
    lambda: objective.init(jax.random.key(0), Outputs(features=given[1]), teacher, batch)
  )

  @jax.jit
  def run(params, features):
    def loss(params, features):
      own = ObjectiveVars({"feature": params}, {"feature": ()})
      out = objective.apply(own, Outputs(features=features), teacher, batch, step=0, rng=None)
      return total(out), {name: term.values.mean() for name, term in out.loss.items()}

    return jax.grad(loss, (0, 1), has_aux=True)(params, features)

  (by_params, by_features), terms = run(*given)
  np.testing.assert_allclose(terms["feature/maps"], reference["maps"], rtol=1e-5)
  apart = [terms[f"feature/{name}"] for name in PATCHES]
  np.testing.assert_allclose(apart, reference["apart"], rtol=1e-5)
  wanted = sides(reference, "own_grad", "patches_grad")
  for name, grad in by_features.items():
    np.testing.assert_allclose(grad, wanted[name], rtol=1e-3, atol=2e-5, err_msg=name)
  assert jax.tree.map(jnp.shape, shapes.params["feature"]) == jax.tree.map(jnp.shape, given[0])
  jax.tree.map(
    lambda own, other: np.testing.assert_allclose(own, other, rtol=1e-3, atol=2e-5),
    by_params,
    official(reference, "grads"),
  )


def test_what_does_not_fit_is_told(reference):
  with pytest.raises(KdjaxError, match="one weight for each of patches"):
    trans_kd(patch_weights=(1.0,))
  with pytest.raises(KdjaxError, match=r"stages = \[\] must not be empty"):
    trans_kd(stages=())
  with pytest.raises(KdjaxError, match=r"preset = 'gll' does not exist.*'gl'"):
    trans_kd(preset="gll")
  with pytest.raises(KdjaxError, match=r"stages = \['stage1'\] are fewer"):
    trans_kd(preset="ea", stages=STAGES[:1])
  own = Outputs(features=sides(reference, "own", "patches"))
  smaller = {name: x[:, :1] for name, x in own.features.items()}
  with pytest.raises(KdjaxError, match="the same height and width are wanted"):
    trans_kd().init(jax.random.key(0), own, Outputs(features=smaller), {})
  with pytest.raises(KdjaxError, match="heads = 2 do not divide embed4's 5 channels"):
    trans_kd(preset="gl", heads=2).init(jax.random.key(0), own, own, {})


def test_an_assistants_shares_begin_as_in_the_official_code(reference):
  own = Outputs(features=sides(reference, "own", "patches"))
  batch = {"image": jnp.zeros((3, 32, 32, 3))}
  params = trans_kd(preset="ea", ce_weight=0.0).init(jax.random.key(0), own, own, batch).params
  params = params["feature"]
  np.testing.assert_allclose(params["shares"], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
  begun = [params[f"assistant{i}"]["share"] for i in range(4)]
  np.testing.assert_allclose(begun, [0.5, 0.6, 0.7, 0.8], rtol=1e-6)
  # Patches of 7 places every 4, then of 3 every 2.
  sizes = [params[f"assistant{i}"]["conv"]["kernel"].shape[0] for i in range(4)]
  assert sizes == [7, 3, 3, 3]
