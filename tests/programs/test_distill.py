"""The distill program: one update whatever the split, states carried, mistakes told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.programs import Start, distill
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from tests.programs.helpers import (
  SHAPE,
  STUDENT,
  TEACHER_MODEL,
  batch,
  close,
  sgd,
  teacher,
  trained,
)

BATCHES = [batch(seed) for seed in range(3)]


def differs(a, b):
  return bool(np.any(np.asarray(a) != np.asarray(b)))


def begun(program, start=None):
  """The state that `trained` begins with."""
  return jax.jit(program.init)(jax.random.key(0), BATCHES[0], start)


def test_one_step_is_the_gradient_of_the_masked_mean():
  program = distill(STUDENT, objectives.cross_entropy(), sgd(0.5))
  state, metrics = trained(program, BATCHES[:1])
  start = begun(program)
  one = BATCHES[0]
  counted = one["mask"] & (one["label"] >= 0)

  def loss(params):
    out, _ = STUDENT.apply(models.ModelVars(params, {}), one)
    picked = jax.nn.log_softmax(out.logits)[np.arange(16), one["label"]]
    return -picked[counted].mean()

  value, grad = jax.jit(jax.value_and_grad(loss))(start.params)
  close(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, start.params, grad))
  np.testing.assert_allclose(metrics[0]["loss"][0], value, rtol=1e-6)
  assert metrics[0]["loss/objective"][1] == counted.sum()
  np.testing.assert_allclose(metrics[0]["grad_norm"][0], optax.global_norm(grad), rtol=1e-5)


def test_weights_that_a_start_does_not_give_are_random():
  program = distill(STUDENT, objectives.cross_entropy(), sgd())
  random = begun(program).params
  part, *others = sorted(random)
  given = {part: jax.tree.map(jnp.ones_like, random[part])}
  params = begun(program, Start(given, {})).params
  assert sorted(params) == sorted(random) and others
  close(params[part], given[part])
  close([params[name] for name in others], [random[name] for name in others])


@pytest.mark.parametrize(
  "layout",
  [
    {"accumulate": 4},
    {"mesh": {"data": 8}},
    {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
    {"mesh": {"data": 2, "fsdp": 2}, "accumulate": 2},
  ],
)
def test_the_update_does_not_depend_on_devices_or_accumulation(layout):
  objective = objectives.hinton_kd(temperature=2.0, kd_weight=0.6, ce_weight=0.4)
  make = lambda n: distill(STUDENT, objective, optax.adam(1e-2), teacher=teacher(), accumulate=n)  # noqa: E731
  wanted, wanted_metrics = trained(make(1), BATCHES)
  mesh = make_mesh(**layout.get("mesh", {"data": 1}))
  state, metrics = trained(make(layout.get("accumulate", 1)), BATCHES, mesh=mesh)
  close(state.params, wanted.params, rtol=1e-4)
  for name in ("loss", "loss/kd", "loss/ce"):
    close([m[name] for m in metrics], [m[name] for m in wanted_metrics], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_carried_state_moves_once_per_step_from_the_whole_batch(accumulate):
  objective = objectives.taid(total_steps=10, t_start=0.2, beta=0.5, alpha=0.5)
  program = distill(STUDENT, objective, sgd(), teacher=teacher(), accumulate=accumulate)
  state, metrics = trained(program, BATCHES)
  # By hand from the logged mean losses: the second and third update each move t.
  losses = [m["loss/kd"][0] / m["loss/kd"][1] for m in metrics]
  t, momentum = 0.2, 0.0
  for step in (1, 2):
    momentum = 0.5 * momentum + 0.5 * (losses[step - 1] - losses[step]) / losses[step - 1]
    t = max(0.2 + 0.8 * step / 10, t + 0.5 / (1 + np.exp(-momentum)) * (1 - t))
  np.testing.assert_allclose(state.objective_state["kd"].t, t, rtol=1e-5)


def test_the_step_compiles_once_donates_its_state_and_leaves_the_teacher():
  program = distill(STUDENT, objectives.hinton_kd(), optax.adam(1e-3), teacher=teacher())
  compiled = compile_program(program, make_mesh(data=8), BATCHES[0])
  frozen = jax.device_put(program.frozen, compiled.frozen_shardings)
  before = jax.tree.map(np.asarray, frozen)
  state = compiled.init(jax.random.key(0))
  first = state
  for one in BATCHES * 2:
    state, _ = compiled.step(state, frozen, place(one, compiled.batch_sharding))
  assert compiled.step._cache_size() == 1
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, frozen), before)


def test_weights_and_moments_lie_where_the_rules_say():
  program = distill(STUDENT, objectives.hinton_kd(), optax.adam(1e-3), teacher=teacher())
  compiled = compile_program(program, make_mesh(data=2, fsdp=2, tensor=2), BATCHES[0])
  state = compiled.init(jax.random.key(0))
  spec = state.params["layer_0"]["kernel"].sharding.spec
  assert tuple(spec) == ("fsdp", "tensor")
  moment = state.opt_state[0].mu["student"]["layer_0"]["kernel"]
  assert moment.sharding.is_equivalent_to(state.params["layer_0"]["kernel"].sharding, 2)
  # Three classes do not divide over two devices: that axis is repeated, the other is still split.
  assert tuple(state.params["head"]["kernel"].sharding.spec) == ("fsdp", None)


def test_batch_statistics_of_the_student_move_and_the_teachers_do_not():
  resnet = models.resnet(depth=8, width=4, **SHAPE)
  told = teachers.frozen(resnet, resnet.init(jax.random.key(5)))
  program = distill(resnet, objectives.hinton_kd(), sgd(), teacher=told)
  state, _ = trained(program, BATCHES[:1])
  start = begun(program)
  moved = jax.tree.map(differs, state.model_state, start.model_state)
  assert all(jax.tree.leaves(moved))
  metrics = jax.jit(program.evaluate)(state, program.frozen, BATCHES[0])
  assert metrics["teacher/accuracy"][1] == (BATCHES[0]["mask"] & (BATCHES[0]["label"] >= 0)).sum()


def test_dropout_differs_between_steps_and_repeats_with_the_seed():
  student = models.mlp(hidden=(64,), dropout=0.5, **SHAPE)
  program = distill(student, objectives.cross_entropy(), optax.sgd(0.0))
  same = [BATCHES[0]] * 2
  _, first = trained(program, same)
  _, again = trained(program, same)
  assert first[0]["loss"][0] != first[1]["loss"][0]
  assert [m["loss"][0] for m in first] == [m["loss"][0] for m in again]


def test_average_of_weights_follows_its_formula_and_is_what_is_evaluated():
  program = distill(STUDENT, objectives.cross_entropy(), sgd(), ema_decay=0.75)
  start = begun(program)
  after_one, _ = trained(program, BATCHES[:1])
  wanted = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start.params, after_one.params)
  close(after_one.ema, wanted)
  evaluate = jax.jit(program.evaluate)
  metrics = evaluate(after_one, program.frozen, BATCHES[0])
  by_hand = evaluate(after_one._replace(ema=(), params=wanted), program.frozen, BATCHES[0])
  close(metrics, by_hand)


def test_an_averaged_student_as_teacher_starts_as_the_student_and_follows_it():
  program = distill(
    STUDENT, objectives.hinton_kd(), sgd(), teacher=teachers.ema(STUDENT, decay=0.5, warmup=False)
  )
  start = begun(program)
  close(start.teacher_state.params, start.params)
  after, metrics = trained(program, BATCHES[:1])
  np.testing.assert_allclose(metrics[0]["loss/kd"][0], 0, atol=1e-5)
  wanted = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, start.params, after.params)
  close(after.teacher_state.params, wanted)


def test_objective_parameters_train_with_the_student():
  objective = objectives.talking_models(
    student_layers=(0, 1), teacher_layers=(0, 1), message_width=4
  )
  student = models.mlp(hidden=(8, 8), **SHAPE)
  program = distill(student, objective, sgd(), teacher=teacher())
  start = begun(program)
  state, _ = trained(program, BATCHES)
  moved = jax.tree.map(
    differs,
    state.objective_params["talk"]["student"]["encoder"],
    start.objective_params["talk"]["student"]["encoder"],
  )
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda: distill(STUDENT, objectives.minilm(), sgd(), teacher=teacher()),
      r"tap\(s\) \['keys', 'queries', 'values'\] of the student, which config.student cannot give",
    ),
    (
      lambda: distill(STUDENT, objectives.hinton_kd(), sgd()),
      r"\['logits'\] of the teacher.* it gives nothing",
    ),
    (
      lambda: distill(
        models.mlp(num_classes=4, image_shape=(4, 4, 1)),
        objectives.hinton_kd(),
        sgd(),
        teacher=teacher(),
      ),
      "config.student has 4, config.teacher has 3",
    ),
    (
      lambda: distill(STUDENT, objectives.cross_entropy(), sgd(), accumulate=0),
      "accumulate = 0 must be at least 1",
    ),
    (
      lambda: distill(STUDENT, objectives.cross_entropy(), sgd(), ema_decay=1.0),
      r"ema_decay = 1.0 must lie in \[0, 1\)",
    ),
  ],
)
def test_what_cannot_work_is_refused_when_the_program_is_made(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()


def test_a_batch_that_does_not_divide_into_micro_batches_is_refused():
  program = distill(STUDENT, objectives.cross_entropy(), sgd(), accumulate=3)
  with pytest.raises(KdjaxError, match="batch_size = 16 is not divisible by"):
    trained(program, BATCHES[:1])


def test_bfloat16_models_train_with_float32_parameters():
  student = models.mlp(hidden=(8,), dtype="bfloat16", **SHAPE)
  told = teachers.frozen(TEACHER_MODEL, TEACHER_MODEL.init(jax.random.key(1)), dtype="bfloat16")
  program = distill(student, objectives.hinton_kd(), optax.adam(1e-2), teacher=told)
  state, metrics = trained(program, BATCHES * 5)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert {leaf.dtype for leaf in jax.tree.leaves(program.frozen)} == {jnp.dtype("bfloat16")}
  assert metrics[-1]["loss"][0] < metrics[0]["loss"][0]
