"""Two views as rows of one batch, and the vision distillers on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import models, objectives, teachers
from kdjax.objectives import combine
from kdjax.programs import distill
from kdjax.programs.views import both_views
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from tests.programs.helpers import STUDENT, batch, close, sgd, teacher, trained


def two_views(seed: int = 0) -> dict:
  one = batch(seed)
  return one | {"second_image": one["image"] + 1}


def test_the_views_of_an_example_lie_side_by_side():
  one = two_views()
  both = both_views(one)
  np.testing.assert_array_equal(both["image"][::2], one["image"])
  np.testing.assert_array_equal(both["image"][1::2], one["second_image"])
  for key in ("label", "index", "mask"):
    np.testing.assert_array_equal(both[key], np.repeat(one[key], 2))
  np.testing.assert_array_equal(both["view"], np.tile([0, 1], 16))
  assert "second_image" not in both
  assert both_views(batch()) is not None and "view" not in both_views(batch())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_program_trains_on_both_views(accumulate):
  program = distill(
    STUDENT, objectives.cross_entropy(), sgd(), teacher=teacher(), accumulate=accumulate
  )
  state, metrics = trained(program, [two_views()])
  joined = jax.tree.map(np.asarray, both_views(two_views()))
  alone, _ = trained(distill(STUDENT, objectives.cross_entropy(), sgd()), [joined])
  close(state.params, alone.params)
  assert metrics[0]["loss/objective"][1] == 2 * (batch()["mask"] & (batch()["label"] >= 0)).sum()


def every_method():
  """All that relate the examples of a batch or carry something, as one objective."""
  feature_kd = objectives.feature_kd
  embedded = ("relational_distance", "relational_angle", "probabilistic_knowledge_transfer")
  parts = {name: feature_kd(loss=name, ce_weight=0.0) for name in embedded}
  parts["similarity"] = feature_kd(loss="similarity_preserving", pairs=((-1, -1),), ce_weight=0.0)
  parts["fitnet"] = objectives.fitnet(ce_weight=0.0, feature_weight=1.0)
  parts["overhaul"] = objectives.overhaul(ce_weight=0.0)
  parts["review"] = objectives.review(ce_weight=0.0)
  parts["vid"] = objectives.variational_information(ce_weight=0.0)
  parts["levels"] = objectives.multi_level()
  parts["ctkd"] = objectives.curriculum_temperature(ramp_steps=1)
  parts["crd"] = objectives.contrastive_representation(examples=16, width=4, negatives=5)
  return combine({name: (1.0, part) for name, part in parts.items()})


def stepped(devices: int):
  shape = {"num_classes": 3, "image_shape": (4, 4, 1)}
  big = models.resnet(depth=8, width=3, **shape)
  told = teachers.frozen(big, big.init(jax.random.key(1)))
  student = models.resnet(depth=8, width=2, **shape)
  program = distill(student, every_method(), optax.sgd(1e-3), teacher=told)
  batches = [two_views(seed) for seed in range(2)]
  compiled = compile_program(program, make_mesh(data=devices), batches[0])
  frozen = jax.device_put(program.frozen, compiled.frozen_shardings)
  state = compiled.init(jax.random.key(0))
  state = compiled.prepare(state, frozen, place(batch(0), compiled.batch_sharding))
  start = jax.device_get(state.objective_state)
  for one in batches:
    state, metrics = compiled.step(state, frozen, place(one, compiled.batch_sharding))
  return jax.device_get((start, state, metrics))


def test_eight_devices_equal_one():
  (start, one, metrics), (eight_start, eight, eight_metrics) = stepped(1), stepped(8)
  close(start, eight_start, rtol=1e-4, atol=1e-5)
  close(metrics, eight_metrics, rtol=2e-3, atol=1e-4)
  close(one.objective_state, eight.objective_state, rtol=1e-3, atol=1e-4)
  close(one.params, eight.params, rtol=1e-3, atol=1e-4)
  # Everything has moved.
  banks, before = one.objective_state["crd"]["feature"], start["crd"]["feature"]
  assert (np.abs(banks.student - before.student).max(1)[:14] > 1e-3).all()
  assert (banks.scale > 0).all() and (banks.label[:14] >= 0).all()
  assert one.objective_params["ctkd"]["kd"]["theta"] != 1
  assert jnp.isfinite(metrics["loss"][0])
