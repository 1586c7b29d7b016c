"""Feature distillation: losses by name, the methods with projectors, and their official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import feature_kd, fitnet, overhaul, review, variational_information
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.objectives.fitnet import _convolution, regress
from kdjax.objectives.overhaul import Negatives
from kdjax.outputs import Outputs
from tests.losses.checks import CLOSE, reference
from tests.objectives.helpers import applied, labelled, outputs

STORED = reference("vision_distillers")
BATCH = {"label": jnp.zeros(4, jnp.int32), "mask": jnp.ones(4, bool)}


def maps(seed, *shapes, rows=8):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return {
    f"stage{i + 1}": jax.random.normal(key, (rows, *shape))
    for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
  }


def value_and_grad(objective, variables, student, teacher):
  """The total, its gradient by the variables and by the student's outputs."""

  @jax.jit
  def both(params, student):
    own = variables._replace(params=params)
    out = objective.apply(own, student, teacher, BATCH, step=jnp.int32(0), rng=None)
    return total(out)

  return jax.value_and_grad(both, argnums=(0, 1))(variables.params, student)


def test_the_losses_of_all_pairs_are_added_over_valid_examples():
  student = outputs(0, features=maps(0, (8, 8, 3), (4, 4, 5)))
  teacher = outputs(1, features=maps(1, (8, 8, 4), (4, 4, 7)))
  pairs = [("stage1", "stage1"), (1, -1)]
  objective = feature_kd(
    loss="attention_transfer", pairs=pairs, feature_weight=7.0, ce_weight=0.5, mode="paper"
  )
  result, _ = applied(objective, student, teacher, labelled())
  assert set(result.loss) == {"feature/sstage1_tstage1", "feature/s1_t-1", "ce"}
  wanted = sum(
    losses.attention_transfer(student.features[k], teacher.features[k], mode="paper")[:-1].mean()
    for k in ("stage1", "stage2")
  )
  ce = losses.cross_entropy(student.logits, labelled()["label"])[:-1].mean()
  np.testing.assert_allclose(total(result), 7 * wanted + 0.5 * ce, rtol=1e-5)


def test_without_pairs_the_embeddings_are_compared():
  student = outputs(0, embedding=jax.random.normal(jax.random.key(2), (8, 3)))
  teacher = outputs(1, embedding=jax.random.normal(jax.random.key(3), (8, 6)))
  objective = feature_kd(loss="relational_distance", ce_weight=0.0)
  assert objective.taps == (frozenset({"embedding"}),) * 2
  result, _ = applied(objective, student, teacher, labelled())
  where = labelled()["mask"]
  wanted = losses.relational_distance(student.embedding, teacher.embedding, where=where)
  np.testing.assert_allclose(result.loss["feature"].values, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"loss": "partial_l2"}, "'partial_l2' is no loss on two features alone"),
    ({"loss": "hints"}, r"did you mean 'hint'\?"),
    ({"loss": "hint", "power": 2}, "power is not an argument of 'hint'"),
    ({"loss": "hint", "pairs": ()}, "pairs is empty"),
    ({"loss": "hint", "pairs": (("stage1", "stage1"),) * 2}, "each pair once"),
  ],
)
def test_what_does_not_exist_is_told(arguments, message):
  with pytest.raises(KdjaxError, match=message):
    feature_kd(**arguments)


@pytest.mark.parametrize("pair", [("stage9", "stage1"), (4, 0)])
def test_a_stage_that_matches_nothing_is_an_error(pair):
  side = outputs(0, features=maps(0, (4, 4, 3)))
  with pytest.raises(KdjaxError, match=rf"student layer {pair[0]!r} .*\['stage1'\]"):
    applied(feature_kd(loss="hint", pairs=[pair]), side, side, labelled())


@pytest.mark.parametrize("size", ["down", "up", "valid", "equal"])
def test_fitnet_is_the_official_regressor(size):
  x, y = STORED[f"fitnet_{size}_student"], STORED[f"fitnet_{size}_teacher"]
  kernel = STORED[f"fitnet_{size}_kernel"]
  if size == "up":  # what PyTorch's transposed convolution slides the other way round
    kernel = kernel[::-1, ::-1]
  params = {
    "conv": {"kernel": kernel, "bias": STORED[f"fitnet_{size}_bias"]},
    "norm": {k: STORED[f"fitnet_{size}_norm_{k}"] for k in ("scale", "bias")},
  }
  params = jax.tree.map(jnp.asarray, params)
  objective = fitnet(student_stage=0, teacher_stage=0, feature_weight=1.0, ce_weight=0.0)
  own, told = Outputs(features={"stage1": x}), Outputs(features={"stage1": y})
  fresh = objective.init(jax.random.key(0), own, told, BATCH)
  shapes = jax.tree.map(jnp.shape, fresh.params["feature"]["s0_t0"])
  assert shapes == jax.tree.map(jnp.shape, params)
  variables = fresh._replace(params={"feature": {"s0_t0": params}})
  value, (by_params, by_student) = value_and_grad(objective, variables, own, told)
  np.testing.assert_allclose(value, STORED[f"fitnet_{size}"], **CLOSE)
  np.testing.assert_allclose(by_student.features["stage1"], STORED[f"fitnet_{size}_grad"], **CLOSE)
  scale = by_params["feature"]["s0_t0"]["norm"]["scale"]
  np.testing.assert_allclose(scale, STORED[f"fitnet_{size}_norm_scale_grad"], **CLOSE)


def test_examples_that_do_not_count_stay_out_of_a_projector_s_statistics():
  x = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
  objective = fitnet(student_stage=0, teacher_stage=0)
  side = Outputs(features={"stage1": x}, logits=jnp.zeros((6, 2)))
  batch = {"label": jnp.zeros(6, jnp.int32)}
  params = objective.init(jax.random.key(1), side, side, batch).params["feature"]["s0_t0"]
  where = jnp.arange(6) < 4
  kept = regress(params, x[:4], where[:4])
  noisy = regress(params, x.at[4:].set(99.0), where)
  np.testing.assert_allclose(noisy[:4], kept, rtol=1e-4, atol=1e-5)


def test_fitnet_refuses_a_student_s_map_of_another_size():
  small, large = jnp.zeros((2, 3, 3, 1)), jnp.zeros((2, 8, 8, 1))
  with pytest.raises(KdjaxError, match="the student's map is 3x3 and the teacher's 8x8"):
    _convolution(small, large)


def test_variational_information_is_the_official_one_and_learns_its_variances():
  x, y = STORED["vid_student"], STORED["vid_teacher"]
  params = {
    "mean": {f"layer{i}": {"kernel": STORED[f"vid_kernel{i}"]} for i in range(3)},
    "variance": STORED["vid_scale"],
  }
  params = jax.tree.map(jnp.asarray, params)
  objective = variational_information(pairs=((0, 0),), ce_weight=0.0)
  own, told = Outputs(features={"stage1": x}), Outputs(features={"stage1": y})
  fresh = objective.init(jax.random.key(0), own, told, BATCH)
  start = fresh.params["feature"]["s0_t0"]
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(jax.nn.softplus(start["variance"]) + 1e-5, 5.0, rtol=1e-5)
  variables = fresh._replace(params={"feature": {"s0_t0": params}})
  value, (by_params, by_student) = value_and_grad(objective, variables, own, told)
  np.testing.assert_allclose(value, STORED["vid"], **CLOSE)
  np.testing.assert_allclose(by_student.features["stage1"], STORED["vid_grad"], **CLOSE)
  by_scale = by_params["feature"]["s0_t0"]["variance"]
  np.testing.assert_allclose(by_scale, STORED["vid_scale_grad"], **CLOSE)
  assert np.abs(by_scale).max() > 1e-4
  with pytest.raises(KdjaxError, match="initial_variance = 0"):
    variational_information(initial_variance=0.0)


def official_overhaul():
  params, state, own, told = {}, {}, {}, {}
  for i in range(2):
    norm = {k: STORED[f"ofd_norm_{k}{i}"] for k in ("scale", "bias")}
    params[f"s{i}_t{i}"] = {"conv": {"kernel": STORED[f"ofd_kernel{i}"]}, "norm": norm}
    margin = jnp.asarray(STORED[f"ofd_margin{i}"])
    state[f"s{i}_t{i}"] = Negatives(margin, jnp.ones_like(margin))
    own[f"stage{i + 2}"], told[f"stage{i + 2}"] = (
      STORED[f"ofd_student{i}"],
      STORED[f"ofd_teacher{i}"],
    )
  params = jax.tree.map(jnp.asarray, params)
  variables = ObjectiveVars({"feature": params}, {"feature": state})
  return variables, Outputs(preactivations=own), Outputs(preactivations=told)


def test_overhaul_is_the_official_one_given_its_margins():
  variables, own, told = official_overhaul()
  objective = overhaul(pairs=((0, 0), (1, 1)), feature_weight=1.0, ce_weight=0.0)
  fresh = objective.init(jax.random.key(0), own, told, BATCH)
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
  value, (_, by_student) = value_and_grad(objective, variables, own, told)
  np.testing.assert_allclose(value, STORED["ofd"], rtol=1e-5)
  for i in range(2):
    gradient = by_student.preactivations[f"stage{i + 2}"]
    np.testing.assert_allclose(gradient, STORED[f"ofd_grad{i}"], rtol=1e-4, atol=1e-4)


def test_margins_are_the_means_of_the_teacher_s_negative_values():
  # Normal values: the closed form of the normalisation before the activation.
  scale, bias = jnp.array([1.0, 0.5, 2.0]), jnp.array([0.0, 0.3, -1.0])
  noise = jax.random.normal(jax.random.key(0), (2, 64, 16, 16, 3))
  values = noise * jnp.broadcast_to(scale, noise.shape) + jnp.broadcast_to(bias, noise.shape)
  batch = {"label": jnp.zeros(64, jnp.int32), "mask": jnp.arange(64) < 60}
  objective = overhaul(pairs=((0, 0),))
  side = Outputs(preactivations={"stage1": values[0]}, logits=jnp.zeros((64, 2)))
  variables = objective.init(jax.random.key(1), side, side, batch)
  for part in values:
    told = Outputs(preactivations={"stage1": part.at[60:].set(-100.0)})
    variables = objective.prepare(variables, told, batch)
  seen = variables.state["feature"]["s0_t0"]
  margin = seen.sum / seen.count
  exact = np.asarray(values[:, :60])
  wanted = [exact[..., c][exact[..., c] < 0].mean() for c in range(3)]
  np.testing.assert_allclose(margin, wanted, rtol=1e-5)
  np.testing.assert_allclose(margin, losses.negative_margin(scale, bias), rtol=0.03)


def test_review_is_the_official_one():
  blocks = {}
  for i in range(4):
    block = {
      side: {
        "conv": {"kernel": STORED[f"review_{side}{i}"]},
        "norm": {k: STORED[f"review_{side}{i}_{k}"] for k in ("scale", "bias")},
      }
      for side in ("in", "out")
    }
    if i:
      block["fuse"] = {"kernel": STORED[f"review_fuse{i}"], "bias": STORED[f"review_fuse{i}_bias"]}
    blocks[f"block{i}"] = block
  blocks = jax.tree.map(jnp.asarray, blocks)
  objective = review(pairs=((0, 0), (1, 1), (2, 2)), ce_weight=0.0)
  names = [f"stage{i + 1}" for i in range(3)]
  own = Outputs(
    features={name: STORED[f"review_student{i}"] for i, name in enumerate(names)},
    embedding=STORED["review_pooled"],
  )
  told = Outputs(
    preactivations={name: STORED[f"review_teacher{i}"] for i, name in enumerate(names)},
    embedding=STORED["review_told"],
  )
  fresh = objective.init(jax.random.key(0), own, told, BATCH)
  assert jax.tree.map(jnp.shape, fresh.params["feature"]) == jax.tree.map(jnp.shape, blocks)
  variables = fresh._replace(params={"feature": blocks})
  value, (_, by_student) = value_and_grad(objective, variables, own, told)
  np.testing.assert_allclose(value, STORED["review"], rtol=1e-5)
  for i, name in enumerate(names):
    np.testing.assert_allclose(by_student.features[name], STORED[f"review_grad{i}"], **CLOSE)
  np.testing.assert_allclose(by_student.embedding, STORED["review_pooled_grad"], **CLOSE)


def test_review_warms_up_and_narrows_to_its_middle():
  own = outputs(0, features=maps(0, (4, 4, 3)), embedding=jnp.ones((8, 6)))
  told = outputs(1, preactivations=maps(1, (4, 4, 5)), embedding=jnp.ones((8, 7)))
  objective = review(pairs=((0, 0),), warmup_steps=20, feature_weight=3.0, middle=2)
  weights = []
  for step in (0, 5, 40):
    result, variables = applied(objective, own, told, labelled(), step=step)
    weights.append(float(result.loss["feature"].weight))
  np.testing.assert_allclose(weights, [0.0, 0.75, 3.0], rtol=1e-6)
  assert variables.params["feature"]["block1"]["out"]["conv"]["kernel"].shape == (3, 3, 2, 5)
  with pytest.raises(KdjaxError, match="review: pairs is empty"):
    review(pairs=())
