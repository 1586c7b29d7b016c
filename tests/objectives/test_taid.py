"""TAID: the moving target and the course of t, against the official code's numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import taid
from kdjax.objectives.base import counts, total
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied, labelled, outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "taid.npz"


def course(objective, values, state=None):
  """t and momentum after each update with the given mean losses."""
  state = objective.init(jax.random.key(0), None, None, None).state if state is None else state
  seen = []
  for step, value in enumerate(values):
    stats = {"kd": (jnp.full(1, value), jnp.ones(1))}
    state = objective.update(state, stats, step=jnp.int32(step))
    seen.append((float(state["kd"].t), float(state["kd"].momentum)))
  return np.array(seen), state


def test_first_update_leaves_t_and_a_constant_loss_moves_it_by_half_alpha():
  # From t = 0.4: 0.4 + 0.5 * 5e-4 * 0.6 = 0.40015. With 10^6 steps the line stays below that.
  seen, _ = course(taid(total_steps=1_000_000), [2.0, 2.0])
  np.testing.assert_allclose(seen, [[0.4, 0.0], [0.40015, 0.0]], atol=1e-7)


def test_a_falling_loss_raises_momentum():
  # (2 - 1) / 2 = 0.5; momentum 0.01 * 0.5 = 0.005; t = 0.4 + 5e-4 * sigmoid(0.005) * 0.6.
  seen, _ = course(taid(total_steps=1_000_000), [2.0, 1.0])
  np.testing.assert_allclose(seen[1], [0.400150375, 0.005], atol=1e-7)


def test_t_never_falls_and_stays_on_or_above_the_line():
  values = np.random.default_rng(0).uniform(0.1, 5, 50)
  seen, _ = course(taid(total_steps=50, alpha=0.1), values)
  line = 0.4 + 0.6 * np.arange(50) / 50
  assert (np.diff(seen[:, 0]) >= 0).all()
  assert (seen[1:, 0] >= line[1:] - 1e-6).all()
  assert seen[-1, 0] <= 1


def test_an_update_sees_the_mean_of_all_micro_batches():
  objective = taid(total_steps=1000)
  state = objective.init(jax.random.key(0), None, None, None).state
  parts = {"kd": (jnp.array([3.0, 5.0]), jnp.array([1.0, 3.0]))}
  after = objective.update(state, parts, step=jnp.int32(0))
  assert after["kd"].previous_loss == 2.0


def test_gradient_is_the_students_minus_the_targets_probabilities():
  student, teacher = outputs(0), outputs(1)
  batch = {"mask": jnp.ones(8, bool), "label": labelled()["label"]}
  objective = taid(total_steps=100, t_start=0.3)

  def loss(logits):
    result, _ = applied(objective, Outputs(logits=logits), teacher, batch)
    return total(result, counts(result))

  target = jax.nn.softmax(0.7 * student.logits + 0.3 * teacher.logits)
  wanted = (jax.nn.softmax(student.logits) - target) / 8
  np.testing.assert_allclose(jax.grad(loss)(student.logits), wanted, atol=1e-6)


def test_the_labels_term_weighs_what_the_target_leaves():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  result, _ = applied(taid(total_steps=10, ce_weight=0.25), student, teacher, batch)
  assert {name: term.weight for name, term in result.loss.items()} == {"kd": 0.75, "ce": 0.25}
  values = losses.interpolated_cross_entropy(student.logits, teacher.logits, mix=0.4)
  np.testing.assert_allclose(result.loss["kd"].values[:-1], values[:-1], rtol=1e-6)


@pytest.mark.parametrize(
  "arguments",
  [{"t_start": 1.0}, {"t_start": -0.1}, {"t_end": 1.5}, {"alpha": 2.0}, {"total_steps": 0}],
)
def test_values_out_of_range_are_refused(arguments):
  with pytest.raises(KdjaxError, match=next(iter(arguments))):
    taid(**({"total_steps": 10} | arguments))


@pytest.mark.parametrize(
  ("run", "arguments"),
  [
    ("ramp", {"t_start": 0.4, "total_steps": 80}),
    ("adaptive", {"t_start": 0.4, "total_steps": 1_000_000}),
    ("fast", {"t_start": 0.2, "total_steps": 2000, "alpha": 0.05, "beta": 0.9}),
    ("linear", {"t_start": 0.2, "total_steps": 100, "adaptive": False}),
  ],
)
def test_t_takes_the_course_of_the_official_code(run, arguments):
  reference = np.load(REFERENCE)
  seen, _ = course(taid(**arguments), reference["losses"])
  np.testing.assert_allclose(seen[:, 0], reference[f"t_{run}"], atol=1e-5)
  np.testing.assert_allclose(seen[:, 1], reference[f"momentum_{run}"], atol=1e-5)
