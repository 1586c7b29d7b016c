"""Steps with values that are not finite leave the state as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import objectives
from kdjax.programs import distill, replicate
from kdjax.programs.guard import skip_nonfinite
from kdjax.programs.replicate import interleave
from kdjax.train.mesh import make_mesh
from tests.programs.helpers import STUDENT, batch, close, teacher, trained


def program():
  return distill(STUDENT, objectives.hinton_kd(), optax.adam(1e-2), teacher=teacher())


def poisoned(seed, value=np.nan):
  own = batch(seed)
  own["image"][3, 0, 0] = value
  return own


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("data", [1, 8])
def test_the_end_is_that_of_a_run_without_the_poisoned_batch(value, data):
  batches = [batch(0), poisoned(1, value), batch(2)]
  state, metrics = trained(skip_nonfinite(program()), batches, mesh=make_mesh(data=data))
  assert [float(own["skipped"][0]) for own in metrics] == [0, 1, 0]
  assert int(state.step) == 3
  # The optimiser's own count has not moved, so that its moments are those of two steps.
  alone, _ = trained(program(), [batches[0], batches[2]], mesh=make_mesh(data=data))
  close(state.params, alone.params, rtol=1e-5)
  close(state.opt_state, alone.opt_state, rtol=1e-5)


def test_a_skipped_step_counts_nothing_in_the_metrics():
  _, metrics = trained(skip_nonfinite(program()), [poisoned(1)])
  for name, (num, den) in metrics[0].items():
    assert np.isfinite(num).all(), name
    assert name == "skipped" or not np.any(den), name


def test_without_poison_nothing_changes():
  batches = [batch(0), batch(1)]
  guarded, _ = trained(skip_nonfinite(program()), batches)
  plain, metrics = trained(program(), batches)
  close(guarded.params, plain.params, rtol=1e-5)
  assert "skipped" not in metrics[0]


def test_an_infinite_gradient_behind_a_finite_loss_is_found():
  def apply(variables, student, teacher, batch, *, step, rng):
    found = inner.apply(variables, student, teacher, batch, step=step, rng=rng)
    name, term = next(iter(found.loss.items()))
    bend = jnp.sqrt(jnp.abs(student.logits - jax.lax.stop_gradient(student.logits))).sum(-1)
    return found._replace(loss={**found.loss, name: term._replace(values=term.values + bend)})

  inner = objectives.hinton_kd()
  own = distill(STUDENT, inner._replace(apply=apply), optax.sgd(0.1), teacher=teacher())
  state, metrics = trained(skip_nonfinite(own), [batch(0)])
  start = jax.jit(own.init)(jax.random.key(0), batch(0))
  assert metrics[0]["skipped"][0] == 1
  close(state.params, start.params)


def test_one_seed_of_several_is_skipped_alone():
  seeds = (3, 11)
  together = [interleave([batch(0), poisoned(1)])]
  both, _ = trained(replicate(skip_nonfinite(program()), seeds), together)
  start = jax.jit(replicate(program(), seeds).init)(jax.random.key(0), together[0])
  moved = [
    not np.array_equal(after[i], before[i])
    for i in range(2)
    for after, before in [(both.params["layer_0"]["kernel"], start.params["layer_0"]["kernel"])]
  ]
  assert moved == [True, False]
