"""Optimisers: schedules, decay masks, groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.optimizers import adamw, make_optimizer, schedule, sgd

PARAMS = {
  "student": {
    "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
  },
  "objective": {"kernel": jnp.ones(3)},
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def step(tx, grads, times=1):
  state, params = tx.init(PARAMS), PARAMS
  for _ in range(times):
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params


def constant(rate):
  return schedule(rate, kind="constant", total_steps=10, warmup_steps=0)


def test_weight_decay_shrinks_kernels_only():
  after = step(make_optimizer(adamw(weight_decay=0.1), constant(0.5)), ZEROS)
  np.testing.assert_allclose(after["student"]["head"]["kernel"], 1 - 0.5 * 0.1, rtol=1e-6)
  np.testing.assert_allclose(after["objective"]["kernel"], 0.95, rtol=1e-6)
  np.testing.assert_array_equal(after["student"]["head"]["bias"], 1)
  np.testing.assert_array_equal(after["student"]["norm"]["scale"], 1)


def test_sgd_puts_decay_into_the_momentum_as_pytorch_does():
  # v1 = g + wd p = 1.1; p1 = 1 - 0.1 * 1.1 = 0.89; v2 = 0.9 * 1.1 + 1 + 0.1 * 0.89 = 2.079;
  # p2 = 0.89 - 0.2079 = 0.6821.
  after = step(make_optimizer(sgd(momentum=0.9, weight_decay=0.1), constant(0.1)), ONES, times=2)
  np.testing.assert_allclose(after["student"]["head"]["kernel"], 0.6821, rtol=1e-5)


def test_groups_scale_or_freeze_and_the_first_match_counts():
  groups = [{"pattern": "head/bias", "scale": 0.0}, {"pattern": "^student/head", "scale": 0.5}]
  after = step(make_optimizer(sgd(momentum=0.0), constant(1.0), groups=groups), ONES)
  np.testing.assert_array_equal(after["student"]["head"]["bias"], 1)
  np.testing.assert_array_equal(after["student"]["head"]["kernel"], 0.5)
  np.testing.assert_array_equal(after["student"]["norm"]["scale"], 0)


def test_clipping_bounds_the_global_norm():
  after = step(make_optimizer(sgd(momentum=0.0), constant(1.0), clip_norm=0.1), ONES)
  moved = jax.tree.leaves(jax.tree.map(jnp.subtract, after, PARAMS))
  np.testing.assert_allclose(np.sqrt(sum(np.square(m).sum() for m in moved)), 0.1, rtol=1e-5)


@pytest.mark.parametrize(
  ("kind", "at", "wanted"),
  [
    ("constant", [0, 5, 10, 90], [0.0, 0.5, 1.0, 1.0]),
    ("linear", [5, 10, 50, 90], [0.5, 1.0, 0.5, 0.0]),
    ("cosine", [10, 50, 90], [1.0, 0.5, 0.0]),
    ("steps", [10, 59, 60, 70, 80], [1.0, 1.0, 0.1, 0.01, 0.001]),
  ],
)
def test_schedules(kind, at, wanted):
  # 10 steps of warm-up, then 80 of the schedule: its eighths are 10 steps long.
  rate = schedule(1.0, kind=kind, total_steps=90, warmup_steps=10)
  np.testing.assert_allclose([rate(step) for step in at], wanted, atol=1e-6)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: schedule(0.0, kind="linear", total_steps=9, warmup_steps=0), "learning_rate = 0.0"),
    (lambda: schedule(1.0, kind="sine", total_steps=9, warmup_steps=0), "'sine' does not exist"),
    (lambda: schedule(1.0, kind="linear", total_steps=9, warmup_steps=10), "warmup_steps = 10"),
    (
      lambda: make_optimizer(sgd(), constant(1.0), groups=[{"pattern": "a"}]),
      r"groups\[0\] must have the fields pattern and scale",
    ),
    (
      lambda: make_optimizer(sgd(), constant(1.0), groups=[{"pattern": "(", "scale": 1}]),
      r"groups\[0\].pattern = '\(' is not valid",
    ),
    (
      lambda: make_optimizer(sgd(), constant(1.0), groups=[{"pattern": "tail", "scale": 1}]).init(
        PARAMS
      ),
      "'tail' matches no parameter; there are .*student/head/kernel",
    ),
  ],
)
def test_mistakes(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()
