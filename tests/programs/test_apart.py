"""Teacher, student and the optimiser's moments, each in a layout of its own on the same devices."""

import jax
import numpy as np
import pytest

from configs import base
from kdjax.data import arrays
from kdjax.errors import KdjaxError
from kdjax.plan.collectives import collectives
from kdjax.teachers import frozen
from kdjax.train.build import build_model, build_program
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, moment_rules, place, row_axes_of, student_rules

RULES = {"mlp": None, "heads": None, "kv_heads": None, "vocab": None}
IMAGES = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
DATA = arrays(IMAGES, np.arange(64) % 10, IMAGES[:8], np.arange(8))
BATCH = {"image": IMAGES[:32], "label": np.int32(np.arange(32) % 10), "mask": np.ones(32, bool)}
VIT = {"name": "vit", "patch": 4, "heads": 4, "mlp_ratio": 2}


def compiled(sizes, rules, moments=None):
  config = base.get_config().to_dict() | {"student_rules": rules, "total_steps": 1}
  config["student"] = VIT | {"width": 16, "depth": 2}
  config["objective"] = {"name": "hinton_kd"}
  config["optimizer"] = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9}
  teacher = build_model(VIT | {"width": 32, "depth": 2}, DATA, "config.teacher.model")
  program, _ = build_program(config, DATA, frozen(teacher, teacher.init(jax.random.key(1))))
  mesh = make_mesh(**sizes)
  config |= {"optimizer_rules": moments or {}}
  lies = {"own_rules": student_rules(rules), "moment_rules": moment_rules(config)}
  return compile_program(program, mesh, BATCH, **lies), mesh


def stepped(sizes, rules, moments=None):
  own, _ = compiled(sizes, rules, moments)
  state, metrics = own.step(
    own.init(jax.random.key(0)), own.frozen, place(BATCH, own.batch_sharding)
  )
  return jax.device_get((state.params, metrics))


def test_a_split_teacher_and_a_repeated_student_step_as_on_one_device():
  given, wanted = stepped({"data": 2, "tensor": 4}, RULES), stepped({"data": 1}, {})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, wanted)


def test_moments_may_be_split_where_weights_are_whole():
  moments = {"embed": ("data", "fsdp")}
  own, _ = compiled({"data": 8}, {}, moments)
  assert all(placed.is_fully_replicated for placed in jax.tree.leaves(own.state_shardings.params))
  split = [
    not placed.is_fully_replicated for placed in jax.tree.leaves(own.state_shardings.opt_state)
  ]
  assert sum(split) > 8
  given, wanted = stepped({"data": 8}, {}, moments), stepped({"data": 1}, {})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, wanted)


def test_the_students_rows_are_split_over_all_devices():
  own, mesh = compiled({"data": 2, "tensor": 4}, RULES)
  params, placed = own.abstract_state.params, own.state_shardings.params
  assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(placed))
  told = jax.tree.leaves(own.frozen_shardings.teacher.params)
  assert sum("tensor" in tuple(sharding.spec) for sharding in told) >= 6
  program = own.step.lower(own.abstract_state, own.frozen, BATCH).compile()
  found = collectives(program.as_text(), mesh)
  # The teacher's layers end with a sum over tensor; the student's gradient is one over all devices.
  assert sum(each.times for each in found if each.axes == ("tensor",)) >= 2 * 2
  size = sum(4 * x.size for x in jax.tree.leaves(params))
  everywhere = sum(e.bytes * e.times for e in found if set(e.axes) == {"data", "tensor"})
  assert 0.9 * size < everywhere < 1.2 * size


def test_rules_that_split_nothing_over_tensor_give_rows_to_it():
  assert row_axes_of(student_rules({})) == ("data", "fsdp")
  assert row_axes_of(student_rules(RULES)) == ("data", "fsdp", "tensor")
  with pytest.raises(KdjaxError, match=r"config.student_rules.embd does not exist.*'embed'"):
    student_rules({"embd": None})
