"""TransKD against the official fusion and losses, and its early refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import trans_kd
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.objectives.trans_kd import PATCHES, STAGES
from kdjax.outputs import Outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "trans_kd.npz"
SIDES = (8, 4, 2, 1)


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


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
  return jax.tree.map(jnp.asarray, params)


def sides(reference, maps: str, patches: str):
  found = {}
  for i, side in enumerate(SIDES):
    found[STAGES[i]] = reference[f"{maps}{i}"].transpose(0, 2, 3, 1)
    found[PATCHES[i]] = reference[f"{patches}{i}"].reshape(3, side, side, -1)
  return jax.tree.map(jnp.asarray, found)


def test_losses_and_gradients_are_the_official_ones(reference):
  teacher = Outputs(features=sides(reference, "told", "told_patches"))
  objective = trans_kd(ce_weight=0.0, middle=10)
  given = official(reference, "weights"), sides(reference, "own", "patches")
  shapes = jax.eval_shape(
    lambda: objective.init(jax.random.key(0), Outputs(features=given[1]), teacher, {})
  )

  @jax.jit
  def run(params, features):
    def loss(params, features):
      own = ObjectiveVars({"feature": params}, {"feature": ()})
      out = objective.apply(own, Outputs(features=features), teacher, {}, step=0, rng=None)
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
  own = Outputs(features=sides(reference, "own", "patches"))
  smaller = {name: x[:, :1] for name, x in own.features.items()}
  with pytest.raises(KdjaxError, match="the same height and width are wanted"):
    trans_kd().init(jax.random.key(0), own, Outputs(features=smaller), {})
