"""Whole trips in an evaluation: a driver that only brakes, and one that only speeds up."""

import jax
import jax.numpy as jnp
import pytest

from kdjax.evaluation import finalize
from kdjax.models.base import Model
from kdjax.outputs import Outputs
from kdjax.programs.distill import NO_TEACHER
from kdjax.programs.drives import drives

BRAKE, SPEED_UP, STRAIGHT = (0.8, 5.5), (5.5, 0.8), (3.0, 3.0)
SCENES = jnp.arange(1_000_000, 1_000_006, dtype=jnp.int32)


def metrics(acceleration, mask=None):
  def apply(variables, batch, *, taps):
    policy = jnp.array([acceleration, STRAIGHT])[None]
    return Outputs(policy=jnp.broadcast_to(policy, (len(batch["speed"]), 2, 2))), ()

  model = Model(None, apply, None, frozenset({"policy"}), 2)
  mask = jnp.ones(len(SCENES), bool) if mask is None else mask
  evaluate = drives(model, NO_TEACHER)
  return finalize(
    jax.jit(lambda batch: evaluate(None, None, batch))({"scene": SCENES, "mask": mask})
  )


def test_who_brakes_stays_and_is_right_only_where_the_rule_is():
  found = metrics(BRAKE)
  assert found["crashes"] == 0 and found["completion"] < 0.1
  assert found["driving_score"] == found["completion"]
  assert found["action_error_rule"] == pytest.approx(0, abs=1e-6)
  assert found["action_error"] > 0.2
  assert not any(name.startswith("teacher/") for name in found)


def test_who_never_brakes_crashes_and_scores_nothing():
  found = metrics(SPEED_UP)
  assert found["crashes"] == 1 and found["driving_score"] == 0
  assert found["action_error_rule"] == pytest.approx(2, abs=1e-6)


def test_padded_scenes_do_not_count():
  half = metrics(BRAKE, jnp.arange(len(SCENES)) < 3)
  whole = metrics(BRAKE)
  assert half["completion"] != whole["completion"] and 0 < half["completion"] < 0.1
