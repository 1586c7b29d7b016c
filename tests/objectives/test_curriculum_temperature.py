"""Curriculum temperature: the reversed gradient, its schedule, and official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import curriculum_temperature
from kdjax.objectives.base import total
from kdjax.objectives.curriculum_temperature import reverse_gradient
from kdjax.outputs import Outputs
from tests.losses.checks import CLOSE, reference
from tests.objectives.helpers import applied, labelled, outputs

STORED = reference("vision_distillers")


def test_the_gradient_is_turned_round():
  value, gradients = jax.value_and_grad(
    lambda x, s: jnp.square(reverse_gradient(x, s)), argnums=(0, 1)
  )(jnp.float32(3), jnp.float32(0.25))
  assert value == 9
  np.testing.assert_allclose(gradients, [-1.5, 0.0])


@pytest.mark.parametrize(("key", "step"), [("ctkd", 10), ("ctkd_half", 5), ("ctkd", 700)])
def test_official_code(key, step):
  objective = curriculum_temperature(ramp_steps=10, kd_weight=1.0, ce_weight=0.0)
  teacher = Outputs(logits=STORED["ctkd_teacher"])
  batch = {"label": jnp.zeros(6, jnp.int32)}
  variables = objective.init(jax.random.key(0), teacher, teacher, batch)

  def loss(params, logits):
    own = variables._replace(params=params)
    out, _ = applied(objective, Outputs(logits=logits), teacher, batch, step=step, variables=own)
    return total(out)

  value, (by_params, by_student) = jax.value_and_grad(loss, argnums=(0, 1))(
    variables.params, jnp.asarray(STORED["ctkd_student"])
  )
  np.testing.assert_allclose(value, STORED[key], **CLOSE)
  np.testing.assert_allclose(by_student, STORED[f"{key}_grad"], **CLOSE)
  np.testing.assert_allclose(by_params["kd"]["theta"], STORED[f"{key}_theta_grad"][0], **CLOSE)


def test_the_strength_rises_along_half_a_cosine_from_a_temperature_of_15_6():
  objective = curriculum_temperature(ramp_steps=8)
  strengths = []
  for step in (0, 2, 4, 8, 50):
    out, _ = applied(objective, outputs(0), outputs(1), labelled(), step=step)
    strengths.append(float(out.metrics["kd/strength"][0]))
  wanted = [0, 0.5 - 0.5 * np.sqrt(0.5), 0.5, 1, 1]
  np.testing.assert_allclose(strengths, wanted, atol=1e-6)
  np.testing.assert_allclose(out.metrics["kd/temperature"][0], 15.62, atol=5e-3)


@pytest.mark.parametrize("wrong", [{"ramp_steps": 0}, {"start": 0.0}, {"span": -1.0}])
def test_values_out_of_range_are_named(wrong):
  name, value = next(iter(wrong.items()))
  with pytest.raises(KdjaxError, match=f"{name} = {value}"):
    curriculum_temperature(**({"ramp_steps": 5} | wrong))
