"""Talking Models: the path through the frozen teacher, limits, and rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, teachers
from kdjax.errors import KdjaxError
from kdjax.models import ModelVars
from kdjax.objectives import talking_models
from kdjax.objectives.base import counts, total
from kdjax.objectives.talking_models import decode, encode
from tests.objectives.helpers import applied

SHAPE = {"num_classes": 3, "image_shape": (4, 4, 1)}
STUDENT = models.mlp(hidden=(6, 6), **SHAPE)
TEACHER = models.mlp(hidden=(10, 12, 8), **SHAPE)
BATCH = {
  "image": jax.random.normal(jax.random.key(9), (5, 4, 4, 1)),
  "label": jnp.arange(5) % 3,
  "mask": jnp.ones(5, bool),
}
LAYERS = {"student_layers": (0, 1), "teacher_layers": (0, 2), "message_width": 7}


def both_sides(objective, student_vars, teacher_vars):
  teacher = teachers.frozen(TEACHER, teacher_vars)
  own, _ = STUDENT.apply(student_vars, BATCH, taps=objective.taps.student)
  return own, teacher.apply(teacher.frozen, (), BATCH, taps=objective.taps.teacher)


def variables():
  return STUDENT.init(jax.random.key(0)), TEACHER.init(jax.random.key(1))


def test_gradient_passes_through_the_teacher_but_not_into_it():
  objective = talking_models(
    **LAYERS, message_weight=0.0, state_weight=0.0, ce_weight=0.0, target_grad=False
  )
  student_vars, teacher_vars = variables()

  def loss(student_params, teacher_params):
    own, told = both_sides(
      objective,
      student_vars._replace(params=student_params),
      teacher_vars._replace(params=teacher_params),
    )
    result, _ = applied(objective, own, told, BATCH)
    return total(result, counts(result))

  to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(student_vars.params, teacher_vars.params)
  # With the target stopped, the only way to the student's first layer is through the teacher.
  assert float(jnp.abs(to_student["layer_0"]["kernel"]).max()) > 1e-6
  np.testing.assert_array_equal(to_student["layer_1"]["kernel"], 0)
  jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), to_teacher)


def test_without_weights_it_is_supervised_training():
  objective = talking_models(**LAYERS, interact_weight=0.0, message_weight=0.0, state_weight=0.0)
  result, _ = applied(objective, *both_sides(objective, *variables()), BATCH)
  ce = result.loss["ce"]
  np.testing.assert_allclose(total(result, counts(result)), ce.values.mean(), rtol=1e-6)


def test_the_dialogue_is_what_the_equations_say():
  objective = talking_models(**LAYERS, rounds=2)
  own, told = both_sides(objective, *variables())
  result, coders = applied(objective, own, told, BATCH)
  s, t = coders.params["talk"]["student"], coders.params["talk"]["teacher"]
  (low, high), teacher_states = own.hidden_states, told.hidden_states
  first = decode(s, encode(t, told.segment(decode(t, encode(s, low, 0), 0), 1, 3), 1), 1)
  second = decode(s, encode(t, told.segment(decode(t, encode(s, first, 1), 0), 1, 3), 1), 1)
  gap = lambda a, b: np.square(np.asarray(a - b)).mean(-1)  # noqa: E731
  np.testing.assert_allclose(
    result.loss["talk/interact"].values, (gap(first, high) + gap(second, high)) / 2, rtol=1e-5
  )
  messages = gap(encode(s, low, 0), encode(t, teacher_states[0], 0))
  messages += gap(encode(s, high, 1), encode(t, teacher_states[2], 1))
  np.testing.assert_allclose(result.loss["talk/message"].values, messages, rtol=1e-5)


def test_teacher_that_reads_its_own_low_state_answers_with_its_own_high_state():
  objective = talking_models(**LAYERS)
  _, told = both_sides(objective, *variables())
  states = told.hidden_states
  np.testing.assert_allclose(told.segment(states[0], 1, 3), states[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"rounds": 0}, "rounds = 0"),
    ({"teacher_layers": (2, 0)}, r"teacher_layers = \(2, 0\)"),
    ({"student_layers": (0, 5)}, r"student_layers = \(0, 5\).*2 layers"),
  ],
)
def test_layers_and_rounds_that_do_not_fit_are_refused(arguments, message):
  with pytest.raises(KdjaxError, match=message):
    objective = talking_models(**(LAYERS | arguments))
    applied(objective, *both_sides(objective, *variables()), BATCH)


def test_states_with_other_leading_axes_are_refused():
  image_model = models.vit(patch=2, width=8, depth=3, heads=2, **SHAPE)
  told, _ = image_model.apply(
    image_model.init(jax.random.key(1)), BATCH, taps=frozenset({"hidden_states", "segment"})
  )
  own, _ = STUDENT.apply(
    ModelVars(*STUDENT.init(jax.random.key(0))), BATCH, taps=frozenset({"hidden_states", "logits"})
  )
  with pytest.raises(KdjaxError, match="agree in all axes but the last"):
    applied(talking_models(**LAYERS), own, told, BATCH)
