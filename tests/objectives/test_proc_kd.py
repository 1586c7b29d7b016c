"""ProC-KD: its modules against the official ones, its terms, a teacher of other classes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import proc_kd
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.objectives.prototypes import aggregate, augment
from kdjax.outputs import Head, Outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "proc_kd.npz"
B, T, D, V = 4, 3, 4, 5


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


def official(reference, kind: str):
  """The weights, or their gradients, in our names."""
  own = {k.removeprefix(f"{kind}/"): v for k, v in reference.items() if k.startswith(f"{kind}/")}

  def mlp(*names):
    return {
      f"layer{i}": {
        "kernel": own[f"{name}.weight"].reshape(own[f"{name}.weight"].shape[:2]).T,
        "bias": own[f"{name}.bias"],
      }
      for i, name in enumerate(names)
    }

  return {
    "bank": reference["bank" if kind == "weights" else "bank_grad"],
    "in": mlp("cat_transform3.0"),
    "assign": mlp("netvlad3.0"),
    "gather": mlp("vladfc3"),
    "mix": mlp("transform3.0", "transform3.2"),
    "encode": mlp("encode3"),
    "out": mlp("aug_transform3.0", "aug_transform3.2"),
  }


def test_modules_and_their_gradients_are_the_official_ones(reference):
  params = jax.tree.map(jnp.asarray, official(reference, "weights"))
  told = jnp.concatenate(list(jnp.asarray(reference["told"])), axis=-1)

  @jax.jit
  def run(params, own):
    def loss(params, own):
      gathered = aggregate(params, told)
      guided, enriched = augment(params, gathered), augment(params, own)
      value = ((guided + enriched) * reference["weight"]).sum()
      return value, {"gathered": gathered, "guided": guided, "enriched": enriched}

    return jax.grad(loss, (0, 1), has_aux=True)(params, own)

  (by_params, by_own), found = run(params, jnp.asarray(reference["own"]))
  for name, value in found.items():
    np.testing.assert_allclose(value, reference[name], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(by_own, reference["own_grad"], rtol=1e-4, atol=1e-5)
  jax.tree.map(
    lambda own, wanted: np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=2e-5),
    by_params,
    official(reference, "grads"),
  )


def small(rng, **shapes):
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def given():
  """(objective, variables, student's arrays, teacher, batch); the last row is padding."""
  rng = np.random.default_rng(0)
  own = small(rng, states=(2, B, T, D), weight=(D, V), bias=(V,), logits=(B, V))
  teacher = Outputs(hidden_states=jnp.asarray(small(rng, x=(3, B, T, 2 * D))["x"]))
  batch = {"label": jnp.array([0, 3, -1, 2]), "mask": jnp.arange(B) < B - 1}
  objective = proc_kd(prototypes=3)
  variables = jax.eval_shape(
    lambda: objective.init(jax.random.key(0), student(own), teacher, batch)
  )
  params = jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape, np.float32), variables.params)
  return objective, ObjectiveVars(params, variables.state), own, teacher, batch


def student(own) -> Outputs:
  head = Head(jnp.asarray(own["weight"]), jnp.asarray(own["bias"]))
  return Outputs(logits=own["logits"], hidden_states=jnp.asarray(own["states"]), head=head)


def test_terms_are_what_they_are_said_to_be(given):
  objective, variables, own, teacher, batch = given
  out = jax.jit(lambda v: objective.apply(v, student(own), teacher, batch, step=0, rng=None))(
    variables
  )
  params = variables.params["prototypes"]
  bank = params["prototypes"]
  joined = jnp.concatenate(list(teacher.hidden_states), axis=-1)
  guided, enriched = augment(bank, aggregate(bank, joined)), augment(bank, own["states"][-1])

  def logits(tokens):
    x = np.asarray(tokens[:, 0], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    return jnp.asarray(x @ own["weight"] + own["bias"], jnp.float32)

  wanted = {
    "guided": losses.cross_entropy(logits(guided), jnp.maximum(batch["label"], 0)),
    "augmented": losses.cross_entropy(logits(enriched), jnp.maximum(batch["label"], 0)),
    "kl": losses.forward_kl(logits(enriched), logits(guided)),
    "feature": jnp.square(enriched - guided).mean((1, 2)),
  }
  labels = np.array([True, True, False, False])
  for name, values in wanted.items():
    term = out.loss[f"prototypes/{name}"]
    rows = labels if name in ("guided", "augmented") else np.asarray(batch["mask"])
    np.testing.assert_array_equal(term.where, rows)
    np.testing.assert_allclose(term.values[rows], values[rows], rtol=1e-3, atol=1e-5)
  assert set(out.loss) == {"ce"} | {f"prototypes/{name}" for name in wanted}


def test_gradients_reach_head_and_tokens_but_neither_teacher_nor_padding(given):
  objective, variables, own, teacher, batch = given

  @jax.jit
  def run(own, told):
    def loss(own, told):
      told = Outputs(hidden_states=told)
      return total(objective.apply(variables, student(own), told, batch, step=0, rng=None))

    return jax.grad(loss, (0, 1))(own, told)

  grad, by_teacher = run(own, teacher.hidden_states)
  assert grad["weight"].any() and grad["states"][-1][: B - 1].any(axis=(1, 2)).all()
  assert not grad["states"][0].any() and not grad["states"][:, -1].any()
  assert not by_teacher.any()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad))


def test_the_order_of_prototypes_does_not_matter_and_no_weights_leave_tokens(given):
  _, variables, own, teacher, _ = given
  bank = variables.params["prototypes"]["prototypes"]
  joined = jnp.concatenate(list(teacher.hidden_states), axis=-1)
  order = np.array([2, 0, 1])
  kernel = bank["gather"]["layer0"]["kernel"].reshape(3, D, D)[order].reshape(3 * D, D)
  assign = {name: x[..., order] for name, x in bank["assign"]["layer0"].items()}
  other = bank | {
    "bank": bank["bank"][order],
    "assign": {"layer0": assign},
    "gather": {"layer0": bank["gather"]["layer0"] | {"kernel": kernel}},
  }
  permuted, plain = aggregate(other, joined), aggregate(bank, joined)
  np.testing.assert_allclose(permuted, plain, rtol=1e-4, atol=1e-5)
  tokens = jnp.abs(jnp.asarray(own["states"][-1]))
  np.testing.assert_allclose(augment(other, tokens), augment(bank, tokens), rtol=1e-4, atol=1e-5)
  nothing = bank | {"out": jax.tree.map(np.zeros_like, bank["out"])}
  np.testing.assert_allclose(augment(nothing, tokens), tokens)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"prototypes": 0}, "prototypes = 0 must be at least 1"),
    ({"pool": "max"}, "pool = 'max' must be one of"),
    ({"teacher_layers": ()}, "teacher_layers is empty"),
    ({"teacher_layers": (3,)}, "teacher_layers holds 3; the teacher has the layers 0 to 2"),
  ],
)
def test_what_does_not_fit_is_told(given, changed, message):
  _, _, own, teacher, batch = given
  with pytest.raises(KdjaxError, match=message):
    proc_kd(**changed).init(jax.random.key(0), student(own), teacher, batch)


def test_tokens_that_are_not_as_many_are_told(given):
  objective, _, own, teacher, batch = given
  fewer = Outputs(hidden_states=teacher.hidden_states[:, :, 1:])
  with pytest.raises(KdjaxError, match="as many of both are wanted"):
    objective.init(jax.random.key(0), student(own), fewer, batch)
