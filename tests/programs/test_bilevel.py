"""The bilevel program: the outer gradient, what each step may touch, both streams."""

import functools

import jax
import numpy as np
import pytest

from kdjax import models, objectives
from kdjax.errors import KdjaxError
from kdjax.losses import cross_entropy
from kdjax.models import ModelVars
from kdjax.objectives import ObjectiveVars, base
from kdjax.programs import bilevel, distill
from kdjax.programs.bilevel import held
from tests.programs.helpers import SHAPE, STUDENT, batch, close, sgd, teacher, trained

ETA = 0.3


def both(seed=0):
  return batch(seed) | {"validation": batch(seed + 50)}


def program(**arguments):
  rates = {"virtual_learning_rate": ETA, "outer_learning_rate": 1e-2}
  return bilevel(STUDENT, objectives.tgeo_kd(), sgd(), teacher=teacher(), **(rates | arguments))


@jax.jit
def outer_loss(weights, state, one, told):
  """CE on validation data after one plain gradient step on the inner loss, written out."""
  objective = objectives.tgeo_kd()

  def inner(params):
    out, _ = STUDENT.apply(ModelVars(params, {}), one)
    own = ObjectiveVars(weights, state.objective_state.state)
    result = objective.apply(own, out, told, one, step=state.step, rng=None)
    return base.total(result, base.counts(result))

  grad = jax.grad(inner)(state.params)
  params = jax.tree.map(lambda p, g: p - ETA * g, state.params, grad)
  held_out = one["validation"]
  out, _ = STUDENT.apply(ModelVars(params, {}), held_out)
  where = held_out["mask"] & (held_out["label"] >= 0)
  return cross_entropy(out.logits, held_out["label"], where=where).sum() / where.sum()


@functools.cache
def prepared():
  """(program, its compiled step, a state after preparation)."""
  p = program()
  state = jax.jit(p.init)(jax.random.key(0), both())
  return p, jax.jit(p.step), jax.jit(p.prepare)(state, p.frozen, batch(7))


def told_of(p, one):
  return jax.jit(lambda f, b: teacher().apply(f, (), b, taps=frozenset({"logits"})))(
    p.frozen.teacher, one
  )


def test_the_weights_follow_adam_on_the_validation_loss():
  one = both()
  p, step, state = prepared()
  weights = state.objective_state.params
  value, grad = jax.jit(jax.value_and_grad(outer_loss))(weights, state, one, told_of(p, one))
  after, metrics = step(state, p.frozen, one)
  # Adam's first step moves every weight by the rate against the sign of its gradient.
  moved = jax.tree.map(np.subtract, after.objective_state.params, weights)
  grad = jax.tree.map(np.asarray, grad)
  big = jax.tree.map(lambda g: np.abs(g) > 1e-5, grad)
  jax.tree.map(
    lambda m, g, b: np.testing.assert_allclose(m[b], -1e-2 * np.sign(g[b]), rtol=2e-2),
    moved,
    grad,
    big,
  )
  assert sum(int(b.sum()) for b in jax.tree.leaves(big)) > 20
  np.testing.assert_allclose(metrics["validation_loss"][0], value, rtol=1e-5)


def test_the_outer_gradient_agrees_with_finite_differences():
  one = both()
  p, _, state = prepared()
  told = told_of(p, one)
  weights = state.objective_state.params
  direction = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape), weights)
  along = lambda h: outer_loss(  # noqa: E731
    jax.tree.map(lambda w, d: w + h * d, weights, direction), state, one, told
  )
  slope = (along(3e-4) - along(-3e-4)) / 6e-4  # small: leaky ReLU has kinks nearby
  grad = jax.jit(jax.grad(along))(0.0)
  np.testing.assert_allclose(grad, slope, rtol=2e-2)
  assert abs(float(grad)) > 1e-5


def test_the_student_takes_distills_step_with_the_new_weights_fixed():
  one = both()
  p, step, state = prepared()
  after, _ = step(state, p.frozen, one)
  plain = distill(STUDENT, held(objectives.tgeo_kd()), sgd(), teacher=teacher())
  inner = type(jax.eval_shape(plain.init, jax.random.key(0), batch()))(*state[:-1])
  inner = inner._replace(objective_state=after.objective_state)
  wanted, _ = jax.jit(plain.step)(inner, plain.frozen, batch())
  close(after.params, wanted.params)


def test_batch_statistics_move_once_per_step():
  resnet = models.resnet(depth=8, width=4, **SHAPE)
  arguments = {"virtual_learning_rate": ETA, "outer_learning_rate": 1e-2}
  p = bilevel(resnet, objectives.tgeo_kd(), sgd(), teacher=teacher(), **arguments)
  plain = distill(resnet, held(objectives.tgeo_kd()), sgd(), teacher=teacher())
  one = both()
  state = jax.jit(p.init)(jax.random.key(0), one)
  after, _ = jax.jit(p.step)(state, p.frozen, one)
  start = jax.jit(plain.init)(jax.random.key(0), batch())
  wanted, _ = jax.jit(plain.step)(start, plain.frozen, batch())
  close(after.model_state, wanted.model_state)


def test_outer_steps_may_be_rarer():
  p = program(outer_every=2)
  state, metrics = trained(p, [both(), both(1), both(2)])
  assert [float(m["validation_loss"][1]) for m in metrics] == [1, 0, 1]
  assert int(state.outer_opt_state[0].count) == 2


def test_it_shards_like_any_program():
  from kdjax.train.mesh import make_mesh

  wanted, _ = trained(program(), [both(), both(1)])
  state, _ = trained(program(), [both(), both(1)], mesh=make_mesh(data=4, fsdp=2))
  close(state.params, wanted.params, rtol=1e-4)
  close(state.objective_state.params, wanted.objective_state.params, atol=1e-4)


def test_without_a_labelled_row_nothing_moves_the_weights():
  # The inner loss is then 0 whatever the weights are, so the virtual step does not depend on them.
  one = both()
  one["label"] = np.full(16, -1, np.int32)
  p, step, state = prepared()
  after, _ = step(state, p.frozen, one)
  close(after.objective_state.params, state.objective_state.params, atol=0, rtol=0)


def test_rates_must_be_positive():
  with pytest.raises(KdjaxError, match=r"virtual_learning_rate = 0\.0 must be positive"):
    program(virtual_learning_rate=0.0)
