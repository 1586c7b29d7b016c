"""DriveAdapter: its official numbers, what the rule masks, and what reaches what."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.models.driving import Adapter, Policy, _mlp, _through, drive_adapter, driving_policy
from kdjax.objectives import drive_adapter as objective_of
from kdjax.objectives import imitation
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.outputs import Outputs
from kdjax.simulation import beta_action

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "drive_adapter.npz"
WANTED = dict(np.load(REFERENCE, allow_pickle=False))
SIZES = {"channels": (4, 6), "strides": (2, 1), "width": 8}
SHAPES = {"num_classes": 2, "image_shape": (6, 4, 3), "bev_shape": (6, 5, 4)}


@pytest.fixture(autouse=True)
def logical_names():
  with nnx.use_eager_sharding(False):  # as `functional` makes modules
    yield


def weights(name):
  found = {k.split(":")[1]: v for k, v in WANTED.items() if k.startswith(f"{name}:")}
  return {
    k: v.transpose(2, 3, 1, 0) if v.ndim == 4 else v.T if v.ndim == 2 else v
    for k, v in found.items()
  }


def test_an_adapter_is_the_official_one():
  own, theirs = Adapter(12, 4, rngs=nnx.Rngs(0)), weights("adapter")
  names = {
    "down": "conv1",
    "up": "conv2",
    "squeeze": "se.fc1",
    "excite": "se.fc2",
    "out": "out_conv",
  }
  for ours, name in names.items():
    layer = getattr(own, ours)
    layer.kernel[...], layer.bias[...] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]
  for ours, name in {"down_norm": "bn1", "up_norm": "bn2"}.items():
    norm = getattr(own, ours).norm
    norm.scale[...], norm.bias[...] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]
  np.testing.assert_allclose(own(jnp.array(WANTED["maps"]), True), WANTED["adapted"], atol=2e-5)


def test_an_mlp_adapter_is_the_official_one():
  own, theirs = _mlp((6, 12, 3), nnx.Rngs(0)), weights("mlp")
  for layer, name in zip(own, ("fc1", "fc2"), strict=True):
    layer.kernel[...], layer.bias[...] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]
  found = _through(own, jnp.array(WANTED["vectors"]))
  np.testing.assert_allclose(found, WANTED["mlp_out"], atol=1e-5)


def test_divergences_and_actions_are_the_official_ones():
  student, label = jnp.array(WANTED["policies"])
  np.testing.assert_allclose(losses.beta_kl(student, label), WANTED["kl"], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(losses.beta_kl(label, label), 0, atol=1e-6)
  found = beta_action(jnp.array(WANTED["ends"]))
  np.testing.assert_allclose(found, WANTED["actions"], atol=1e-6)
  assert found[0, 1] == -1  # the label of a rule's braking is a full brake

  def official(student):
    weight = (1 + jnp.abs(beta_action(label)[:, 1])) ** 3 / 2
    kl = losses.beta_kl(student, label)
    # The weight is [B, 1] there, so that steering is weighed by its mean.
    return (kl[:, 0] * weight).mean() + kl[:, 1].mean() * weight.mean()

  value, grad = jax.jit(jax.value_and_grad(official))(student)
  np.testing.assert_allclose(value, WANTED["action"], rtol=1e-5)
  np.testing.assert_allclose(grad, WANTED["action_grad"], rtol=1e-4, atol=1e-5)


def sides():
  student, label = jnp.array(WANTED["policies"])
  features, states = jnp.array(WANTED["features"]), jnp.array(WANTED["states"])
  return tuple(
    Outputs(policy=p, features={"conv0": f}, embedding=s)
    for p, f, s in zip((student, label), features, states, strict=True)
  )


def batch_of(rule):
  return {"rule": jnp.array(rule), "mask": jnp.ones(len(rule), bool)}


def test_terms_are_the_official_ones_and_the_rule_masks_features():
  student, teacher = sides()
  objective = objective_of(feature_weights=(50.0,), perception_weight=0.0)
  result = objective.apply(
    ObjectiveVars(), student, teacher, batch_of(WANTED["flags"]), step=0, rng=None
  )
  means = {k: float(t.weight * t.values.mean()) for k, t in result.loss.items()}
  np.testing.assert_allclose(means["conv0"], WANTED["feature"], rtol=1e-5)
  np.testing.assert_allclose(means["state"], WANTED["state"], rtol=1e-5)
  for name in ("conv0", "state"):
    assert (np.asarray(result.loss[name].values)[WANTED["flags"]] == 0).all()
  assert (np.asarray(result.loss["action"].values) > 0).all()


def test_under_the_rule_the_label_is_a_full_brake():
  _, teacher = sides()
  braking = teacher.policy.at[:, 0].set(jnp.array([0.8, 5.5]))
  objective = objective_of(feature_weights=(), state_weight=0.0, perception_weight=0.0)

  def action(policy, rule):
    told = Outputs(policy=policy), teacher, batch_of(rule)
    return objective.apply(ObjectiveVars(), *told, step=0, rng=None).loss["action"].values

  np.testing.assert_allclose(action(braking, [True] * 5), 0, atol=1e-5)
  assert (np.asarray(action(braking, [False] * 5))[[0, 2, 3, 4]] > 0.01).all()


def test_without_the_mask_features_are_a_target_everywhere():
  student, teacher = sides()
  objective = objective_of(feature_weights=(50.0,), perception_weight=0.0, mask_rule=False)
  result = objective.apply(
    ObjectiveVars(), student, teacher, batch_of([True] * 5), step=0, rng=None
  )
  assert (np.asarray(result.loss["conv0"].values) > 0).all()
  with pytest.raises(KdjaxError, match="has 2 weights, and the teacher 1"):
    objective_of(feature_weights=(1.0, 1.0), perception_weight=0.0).apply(
      ObjectiveVars(), student, teacher, batch_of([True] * 5), step=0, rng=None
    )


@pytest.fixture(scope="module")
def pair():
  teacher, student = driving_policy(**SHAPES, **SIZES), drive_adapter(**SHAPES, **SIZES, raw=(4, 6))
  return teacher, student, teacher.init(jax.random.key(0)), student.init(jax.random.key(1))


def frames(rows=3):
  rng = np.random.default_rng(0)
  bev = jnp.asarray(rng.integers(0, 2, (rows, 6, 5, 4)), jnp.float32)
  return {
    "bev": bev,
    "route": bev[..., 1:2],
    "image": jnp.asarray(rng.normal(size=(rows, 6, 4, 3)), jnp.float32),
    "speed": jnp.asarray(rng.random((rows, 1)), jnp.float32),
    "rule": jnp.zeros(rows, bool),
    "mask": jnp.ones(rows, bool),
  }


def test_without_adapters_and_with_true_input_it_is_the_teacher(pair):
  teacher, _, variables, _ = pair
  batch = frames()
  wanted, _ = teacher.apply(variables, batch, taps=frozenset({"policy"}))
  planner = Policy((6, 5, 4), actions=2, rngs=nnx.Rngs(0), **SIZES)
  graph, _ = nnx.split(planner)
  state = nnx.state(planner)
  nnx.replace_by_pure_dict(state, variables.params)
  policy, _, _ = nnx.merge(graph, state)(batch["bev"], batch["speed"])
  np.testing.assert_array_equal(policy, wanted.policy)


def test_the_planner_gets_no_gradient_and_the_first_adapter_that_of_the_action(pair):
  teacher, student, told, variables = pair
  batch = frames()
  objective = objective_of(feature_weights=(), state_weight=0.0, perception_weight=0.0)

  def loss(params):
    out, _ = student.apply(variables._replace(params=params), batch, taps=objective.taps.student)
    own, _ = teacher.apply(told, batch, taps=objective.taps.teacher)
    return total(objective.apply(ObjectiveVars(), out, own, batch, step=0, rng=None))

  grad = jax.jit(jax.grad(loss))(variables.params)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(grad["planner"]))
  assert float(jnp.abs(grad["adapter0"]["out"]["kernel"]).max()) > 0
  assert float(jnp.abs(grad["segment"]["kernel"]).max()) > 0  # straight through


def test_what_the_planner_reads_is_zero_or_one_with_the_gradient_of_the_sigmoid():
  logits = jnp.array([-2.0, -0.1, 0.1, 3.0])

  def hard(x):
    soft = jax.nn.sigmoid(x)
    return jax.lax.stop_gradient((soft > 0.5).astype(soft.dtype) - soft) + soft

  np.testing.assert_allclose(hard(logits), [0, 0, 1, 1], atol=1e-7)
  soft = jax.nn.sigmoid(logits)
  np.testing.assert_allclose(jax.vmap(jax.grad(hard))(logits), soft * (1 - soft), rtol=1e-6)


def test_imitation_is_least_at_the_action():
  objective, action = imitation(), jnp.array([[0.5, -0.2]])

  def value(mean):
    x = (jnp.array([mean]) + 1) / 2
    policy = jnp.stack([20 * x, 20 * (1 - x)], axis=-1)
    batch = {"action": action, "mask": jnp.ones(1, bool)}
    return float(total(objective.apply(ObjectiveVars(), Outputs(policy=policy), None, batch, step=0,
                                       rng=None)))  # fmt: skip

  right = value([0.5, -0.2])
  assert right < value([0.4, -0.2]) and right < value([0.5, -0.3]) and right < value([0.9, 0.9])


def test_beta_losses_under_masks_and_in_bfloat16():
  policy = jnp.array([[2.0, 3.0], [-1.0, 0.0]])
  where = jnp.array([True, False])
  grad = jax.grad(lambda p: losses.beta_kl(p, policy[::-1][:, ::-1] + 2, where=where).sum())(policy)
  assert jnp.isfinite(grad).all() and (grad[1] == 0).all()
  half = losses.beta_kl(policy[:1].astype(jnp.bfloat16), policy[:1].astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  with pytest.raises(KdjaxError, match="alpha and beta"):
    losses.beta_kl(policy[:, :1], policy[:, :1])
