"""Curriculum temperature: Hinton's distillation at a temperature that learns to make it harder."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars
from kdjax.objectives.combinators import combine
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.tokens import logit_taps, map_logits


def curriculum_temperature(
  *,
  ramp_steps: int,
  start: float = 1.0,
  span: float = 20.0,
  kd_weight: float = 0.9,
  ce_weight: float = 0.1,
) -> Objective:
  """`ce_weight` CE + `kd_weight` T^2 KL(teacher || student) at T = start + span sigmoid(theta).

  theta, which starts at 1, climbs the loss that the student descends. How strongly grows from 0 to
  1 along half a cosine over `ramp_steps`.

  Args:
    ramp_steps: at least 1; 10 epochs in the recipe for CIFAR-100, 5 for ImageNet.
    start: > 0, the least temperature.
    span: >= 0, how far above it T may be.
    kd_weight: of the teacher's term.
    ce_weight: of the labels; 0 leaves them out.

  Returns:
    An objective that learns theta.

  Raises:
    KdjaxError: a value out of range.

  Reference:
    Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
    https://arxiv.org/abs/2211.16231 (zhengli97/CTKD, models/temp_global.py, train_student.py), with
    one temperature for all examples ("global"). There the strength changes once an epoch and is 0
    only before the first; here it changes with every step.
  """
  if ramp_steps < 1:
    raise KdjaxError(f"curriculum_temperature: ramp_steps = {ramp_steps} must be at least 1")
  if not start > 0 or not span >= 0:
    raise KdjaxError(
      f"curriculum_temperature: start = {start} must be above 0 and span = {span} not below it"
    )

  def init(rng, student, teacher, batch):
    return ObjectiveVars({"theta": jnp.float32(1)})

  def apply(variables, student, teacher, batch, *, step, rng):
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / ramp_steps, 0, 1)
    strength = 0.5 * (1 - jnp.cos(jnp.pi * progress))
    theta = reverse_gradient(variables.params["theta"], strength)
    temperature = start + span * jax.nn.sigmoid(theta)
    loss = functools.partial(losses.hinton_kd, temperature=temperature)
    term, _ = map_logits(loss, student, teacher, batch)
    one = jnp.float32(1)
    metrics = {
      "temperature": (temperature, one),
      "strength": (strength, one),
    }
    return ObjectiveResult({"": term}, metrics)

  learned = Objective(apply=apply, taps=logit_taps(None), init=init)
  terms = {"kd": (kd_weight, learned)}
  if ce_weight:
    terms["ce"] = (ce_weight, cross_entropy())
  return combine(terms)


@jax.custom_vjp
def reverse_gradient(x: Float[Array, ""], strength: Float[Array, ""]) -> Float[Array, ""]:
  """x; going back, the gradient times minus `strength`, which itself gets none."""
  return x


def _forward(x, strength):
  return x, strength


def _backward(strength, gradient):
  return -strength * gradient, jnp.zeros_like(strength)


reverse_gradient.defvjp(_forward, _backward)
