"""ScaleKD against the official projectors and losses, and with the library's own teachers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import direction_distance
from kdjax.models import swin, vit
from kdjax.objectives import scale_kd
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "scale_kd.npz"
SHAPE, V = (8, 8, 1), 5
STAGES = ("stage2", "stage3")


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


def official(reference, kind: str, name: str, number: int):
  """The weights, or their gradients, of a projector in our names."""
  start = f"{kind}/{name}/projector_{number}."
  own = {k.removeprefix(start): v for k, v in reference.items() if k.startswith(start)}

  def linear(key):
    return {"kernel": own[f"{key}.weight"].T, "bias": own[f"{key}.bias"]}

  grid = own["proj_pos.0.weight"][:, :, 0, 0].T
  side = own["pos_embed"].shape[-1]
  params = {
    "student": {
      "kernel": own["proj_student.0.weight"].transpose(2, 3, 1, 0),
      "bias": own["proj_student.0.bias"],
    },
    "student_norm": {"scale": own["proj_student.1.weight"], "bias": own["proj_student.1.bias"]},
    "place": own["pos_embed"][0].transpose(1, 2, 0),
    "grid": {"layer0": {"kernel": grid, "bias": own["proj_pos.0.bias"]}},
    "query": {"layer0": linear("pos_attention.q")},
    "key": {"layer0": linear("pos_attention.k")},
    "value": {"layer0": linear("pos_attention.v")},
    "out": {"layer0": linear("pos_attention.proj")},
    "norm": {"scale": own["norm.weight"], "bias": own["norm.bias"]},
    "mlp": {"layer0": linear("ffn.up"), "layer1": linear("ffn.down")},
  }
  if "query.weight" in own:
    params["queries"] = own["query.weight"].reshape(side, side, -1)
  return jax.tree.map(jnp.asarray, params)


def test_losses_and_gradients_are_the_official_ones(reference):
  low, high, last = (
    jnp.asarray(reference[name].transpose(0, 2, 3, 1)) for name in ("low", "high", "last")
  )
  widen = jnp.asarray(reference["widen"])

  def segment(hidden, start, stop):
    assert (start, stop) == (3, 4)
    return hidden.reshape(3, 2, 2, 2, 2, 8).mean((2, 4)) @ widen

  told = {f"stage{i}": jnp.zeros((3, 4, 4, 8)) for i in (1, 2, 3)} | {"stage4": last}
  teacher = Outputs(features=told, segment=jax.tree_util.Partial(segment))
  objective = scale_kd(heads=(2, 3), ce_weight=0.0)
  params = {
    view: {name: official(reference, "weights", name, i) for name in ("earlier", "later")}
    for i, view in enumerate(("spatial", "alternative"))
  }

  def loss(params, low, high):
    student = Outputs(features={"stage3": low, "stage4": high})
    own = ObjectiveVars({"feature": params}, {"feature": ()})
    out = objective.apply(own, student, teacher, {}, step=0, rng=None)
    return total(out), out

  run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), (by_params, by_low, by_high) = run(params, low, high)
  assert len(out.loss) == 4
  for name, term in out.loss.items():
    wanted = reference[f"loss/{name.removeprefix('feature/')}"]
    np.testing.assert_allclose(term.weight * term.values.mean(), wanted, rtol=1e-5)
  for grad, name in ((by_low, "low_grad"), (by_high, "high_grad")):
    np.testing.assert_allclose(grad, reference[name].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
  for i, view in enumerate(("spatial", "alternative")):
    for name in ("earlier", "later"):
      wanted = official(reference, "grads", name, i)
      assert jax.tree.structure(by_params[view][name]) == jax.tree.structure(wanted)
      for own, other in zip(*map(jax.tree.leaves, (by_params[view][name], wanted)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=2e-5)


def test_directions_have_their_bounds_and_invariances():
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.standard_normal((2, 3, 3, 4)), jnp.float32) for _ in range(2))
  lengths = jnp.asarray(rng.uniform(0.5, 2, (2, 3, 3, 1)), jnp.float32)
  plain = direction_distance(x, y)
  np.testing.assert_allclose(direction_distance(x * lengths, y), plain, rtol=1e-5)
  cosine = (x * y).sum(-1) / jnp.linalg.norm(x, axis=-1) / jnp.linalg.norm(y, axis=-1)
  np.testing.assert_allclose(plain, 2 * (1 - cosine).sum((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(direction_distance(x, -x), 4 * 9, rtol=1e-5)
  shift = jnp.broadcast_to(jnp.arange(4.0)[None, None, None], x.shape)
  moved = direction_distance(x + shift, y, centred=True)
  np.testing.assert_allclose(moved, direction_distance(x, y, centred=True), rtol=1e-4)
  assert (jnp.abs(direction_distance(x + shift, y) - plain) > 1).all()
  # A constant map has no directions once centred: nothing is not a number.
  flat = jnp.ones_like(x)
  grad = jax.grad(lambda x: direction_distance(x, y, centred=True).sum())(flat)
  assert np.isfinite(grad).all()


def with_teacher(model, layers, side: int):
  """(gradients by projectors, teacher and student's maps, their arguments) of a tiny batch."""
  objective = scale_kd(student_layers=STAGES, teacher_layers=layers, heads=(2, 2))
  rows = {"image": jax.random.uniform(jax.random.key(2), (3, side, side, 1))}
  rows |= {"label": jnp.arange(3), "mask": jnp.array([True, True, False])}
  rng = np.random.default_rng(1)
  maps = {name: rng.standard_normal((3, 2, 2, 3)).astype(np.float32) for name in STAGES}

  def sides(weights, maps):
    teacher, _ = model.apply(weights, rows, taps=objective.taps.teacher)
    return Outputs(logits=jnp.zeros((3, V)), features=maps), teacher

  def run(weights, maps):
    own = jax.eval_shape(lambda: objective.init(jax.random.key(3), *sides(weights, maps), rows))
    own = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) / 3, own)

    def loss(params, weights, maps):
      own_vars = own._replace(params=params)
      out = objective.apply(own_vars, *sides(weights, maps), rows, step=0, rng=None)
      return total(out)

    return jax.grad(loss, (0, 1, 2))(own.params, weights, maps)

  return run, maps


def test_the_teachers_own_layers_pass_gradients_and_keep_none():
  sizes = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_ratio": 1}
  model = vit(num_classes=V, image_shape=(8, 8, 1), **sizes)
  run, maps = with_teacher(model, (0, -1), 8)
  by_params, by_teacher, by_maps = jax.jit(run)(model.init(jax.random.key(0)), maps)
  assert not any(x.any() for x in jax.tree.leaves(by_teacher))
  for view in ("spatial", "alternative"):
    for name in ("earlier", "later"):
      grad = by_params["feature"][view][name]["mlp"]["layer0"]["kernel"]
      assert grad.any() and np.isfinite(grad).all(), (view, name)
  for grad in by_maps.values():
    # Padding has no part in loss or norms; every other example moves something.
    assert not grad[2].any() and np.isfinite(grad).all() and grad[:2].any(axis=(1, 2, 3)).all()


def test_stages_of_swin_are_read_and_run():
  sizes = {"width": 4, "depths": (2, 2), "heads": (1, 2), "patch": 2, "window": 2}
  model = swin(num_classes=V, image_shape=(8, 8, 1), **sizes)
  run, maps = with_teacher(model, ("stage1", "stage2"), 8)
  weights = jax.eval_shape(model.init, jax.random.key(0))
  by_params, _, by_maps = jax.eval_shape(run, weights, maps)
  own = by_params["feature"]["spatial"]
  assert own["earlier"]["queries"].shape == (4, 4, 4)  # where stage1 is
  assert own["later"]["out"]["layer0"]["kernel"].shape == (8, 8)  # what stage2 has
  assert jax.tree.map(jnp.shape, by_maps) == jax.tree.map(jnp.shape, maps)


def shapes(**changed):
  """(terms' weights, shapes of the parameters) on maps of 2x2 places."""
  maps = {name: jnp.ones((2, 2, 2, 4)) for name in STAGES}
  student = Outputs(logits=jnp.zeros((2, V)), features=maps)
  teacher = Outputs(features=maps, segment=jax.tree_util.Partial(lambda x, start, stop: x))
  given = {"student_layers": STAGES, "teacher_layers": STAGES, "heads": (2, 2)}
  objective, batch = scale_kd(**given | changed), {"label": jnp.zeros(2, jnp.int32)}
  weights = {}

  def run():
    own = objective.init(jax.random.key(0), student, teacher, batch)
    out = objective.apply(own, student, teacher, batch, step=0, rng=None)
    weights.update({name: term.weight for name, term in out.loss.items()})
    return own.params

  return weights, jax.eval_shape(run)["feature"]


def test_learned_queries_and_weights_of_their_own():
  weights, params = shapes(self_query=True, last_weights=(0.08, 0.0))
  assert weights == pytest.approx(
    {
      "feature/earlier/spatial": 0.08,
      "feature/earlier/alternative": 0.06,
      "feature/later/spatial": 0.08,
      "feature/later/alternative": 0.0,
      "ce": 1.0,
    }
  )
  assert params["spatial"]["later"]["queries"].shape == (2, 2, 4)
  _, params = shapes()
  assert "queries" not in params["spatial"]["later"]


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"teacher_layers": ("stage3", "stage2")}, r"must be \(earlier, later\) of the teacher's"),
    ({"student_layers": ("stage2", "stage9")}, "student layer 'stage9' does not exist"),
    ({"heads": (3, 2)}, r"heads = \(3, 2\); 3 does not divide the teacher's 4 channels"),
    ({"student_layers": (0, 1)}, "no class token"),
  ],
)
def test_what_does_not_fit_is_told(changed, message):
  maps = {name: jnp.ones((2, 2, 2, 4)) for name in STAGES}
  states = jnp.zeros((2, 2, 5, 4))
  student = Outputs(logits=jnp.zeros((2, V)), features=maps, hidden_states=states)
  teacher = Outputs(features=maps, segment=jax.tree_util.Partial(lambda x, start, stop: x))
  given = {"student_layers": STAGES, "teacher_layers": STAGES, "heads": (2, 2)}
  with pytest.raises(KdjaxError, match=message):
    applied(scale_kd(**given | changed), student, teacher, {"label": jnp.zeros(2, jnp.int32)})
