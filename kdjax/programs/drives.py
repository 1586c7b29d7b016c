"""A driver tried on the road: whole trips inside one compiled evaluation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdjax.models.base import Model, ModelVars
from kdjax.programs.evaluators import Metrics, Tell
from kdjax.simulation import beta_action
from kdjax.simulation import driving as world
from kdjax.teachers.base import Teacher

POLICY = frozenset({"policy"})


def drives(student: Model, teacher: Teacher):
  """Trips of the student and of its teacher in the scenes of `batch["scene"]`.

  `completion` is the distance as a share of that which the scripted driver comes in the same time,
  at most 1; `crashes` the share of trips that end in one; `driving_score` completion, 0 for a
  crash. `action_error` is the mean distance of the student's actions from the driver's, rule
  included, on the driver's own trips, and `action_error_rule` that of the acceleration where a rule
  braked and the driver did not.
  """

  def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
    keys = jax.vmap(jax.random.key)(batch["scene"])
    scenes, cars = jax.vmap(world.new_scene)(keys)
    mask = batch["mask"].astype(jnp.float32)
    acts = {"": lambda seen: student.apply(variables, seen, taps=POLICY)[0]}
    if teacher.taps >= POLICY:
      acts["teacher/"] = lambda seen: tell(POLICY, seen)

    def driver(cars):
      return jax.vmap(world.expert)(scenes, cars)

    def trip(act):
      """(final cars, crashed, what `act` also gives) of one trip in each scene."""

      def step(carry, key):
        cars, crashed = carry
        seen = jax.vmap(world.observe)(scenes, cars, jax.random.split(key, len(mask)))
        action, told = act(seen, cars)
        on = jax.vmap(world.advance)(scenes, cars, action)
        cars = jax.tree.map(lambda new, old: jnp.where(crashed, old, new), on, cars)
        return (cars, crashed | jax.vmap(world.crashed)(scenes, cars)), told

      start = (cars, jnp.zeros(len(mask), bool))
      (ended, crashed), told = jax.lax.scan(
        step, start, jax.random.split(jax.random.key(1), world.STEPS)
      )
      return ended, crashed, told

    def by_driver(seen, cars):
      action, brakes = driver(cars)
      right = jax.vmap(world.obeyed)(action, brakes)
      own = beta_action(acts[""](seen).policy)
      return right, (jnp.abs(own - right), world.overruled(action, brakes))

    best, _, (errors, rule) = trip(by_driver)
    metrics: Metrics = {
      "action_error": ((errors.mean(-1) * mask[None]).sum(), mask.sum() * world.STEPS),
      "action_error_rule": ((errors[..., 0] * rule * mask[None]).sum(), (rule * mask[None]).sum()),
    }
    for prefix, outputs in acts.items():
      ended, crashed, _ = trip(lambda seen, cars, ask=outputs: (beta_action(ask(seen).policy), ()))
      share = jnp.clip(ended.s / jnp.maximum(best.s, 1.0), 0, 1)
      for name, value in {
        "driving_score": jnp.where(crashed, 0.0, share),
        "completion": share,
        "crashes": crashed.astype(jnp.float32),
      }.items():
        metrics[f"{prefix}{name}"] = ((value * mask).sum(), mask.sum())
    return metrics

  return evaluate
