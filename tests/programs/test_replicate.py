"""Several seeds as one program equal several programs."""

import jax
import numpy as np
import optax

from kdjax import objectives
from kdjax.programs import distill, replicate
from kdjax.programs.replicate import interleave
from kdjax.train.mesh import make_mesh
from tests.programs.helpers import STUDENT, batch, close, teacher, trained


def program():
  return distill(STUDENT, objectives.nd_loss(), optax.adam(1e-2), teacher=teacher())


def test_each_replica_is_the_program_alone():
  seeds = (3, 11)
  batches = {seed: [batch(seed), batch(seed + 1)] for seed in seeds}
  together = [interleave([batches[seed][k] for seed in seeds]) for k in range(2)]
  both, metrics = trained(replicate(program(), seeds), together, mesh=make_mesh(data=8))
  evaluation = jax.jit(replicate(program(), seeds).evaluate)(both, program().frozen, batch(40))
  evaluate, sums = jax.jit(program().evaluate), []
  for i, seed in enumerate(seeds):
    alone, own_metrics = trained(program(), batches[seed], seed=seed)
    close(jax.tree.map(lambda x, i=i: x[i], both.params), alone.params, rtol=1e-4)
    wanted = evaluate(alone, program().frozen, batch(40))
    for name in ("accuracy", "nll"):
      close(evaluation[f"seed{i}/{name}"], wanted[name], rtol=1e-4)
    sums.append(own_metrics[0]["loss"][0])
  np.testing.assert_allclose(metrics[0]["loss"][0], sum(sums), rtol=1e-5)


def test_preparation_shows_every_seed_the_same_data():
  p = replicate(program(), (0, 1))
  state = jax.jit(p.init)(jax.random.key(0), interleave([batch(0), batch(1)]))
  state = jax.jit(p.prepare)(state, program().frozen, batch(5))
  count = state.objective_state["nd"].count
  np.testing.assert_array_equal(count[0], count[1])
  assert count[0].sum() == (batch(5)["mask"] & (batch(5)["label"] >= 0)).sum()
