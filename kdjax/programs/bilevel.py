"""Bilevel distillation: the objective's parameters are trained on the validation loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.models.base import Model, ModelVars
from kdjax.objectives import base
from kdjax.objectives.base import Objective, ObjectiveVars
from kdjax.programs.base import Program
from kdjax.programs.distill import DistillState, distill, optimizer_axes, replicated, teacher_taps
from kdjax.programs.evaluators import LOGITS, Evaluator, classifier
from kdjax.teachers.base import Teacher

BilevelState = NamedTuple(
  "BilevelState", [*DistillState.__annotations__.items(), ("outer_opt_state", Any)]
)


def bilevel(
  student: Model,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher,
  virtual_learning_rate: float,
  outer_learning_rate: float = 1e-3,
  outer_every: int = 1,
  ema_decay: float | None = None,
  accumulate: int = 1,
  evaluator: Evaluator = classifier,
) -> Program:
  """`distill`, with the objective's parameters w set by a validation loss instead of their own.

  Per step, with theta the student's weights: theta' = theta - eta grad L_train(theta, w); w follows
  Adam on the gradient of CE(theta'; validation batch) with respect to w, through theta'; then theta
  takes the ordinary step of `distill` with the new w held fixed.

  Args:
    student: the model to train.
    objective: with params; its loss on the training batch is the inner loss.
    tx: the student's optimiser.
    teacher: any.
    virtual_learning_rate: eta; the student's learning rate is the natural choice.
    outer_learning_rate: of Adam on w.
    outer_every: steps between updates of w.
    ema_decay: see `distill`.
    accumulate: see `distill`; the virtual step takes the whole batch at once.
    evaluator: see `distill`.

  Returns:
    A program over the streams "train" and "validation".

  Raises:
    KdjaxError: see `distill`; no teacher; rates that are not positive.
  """
  if teacher is None:
    raise KdjaxError("config.teacher is empty; config.program.name = 'bilevel' needs a teacher")
  for name, value in (
    ("virtual_learning_rate", virtual_learning_rate),
    ("outer_learning_rate", outer_learning_rate),
    ("outer_every", outer_every),
  ):
    if value <= 0:
      raise KdjaxError(f"config.program.{name} = {value} must be positive")
  inner = distill(
    student,
    held(objective),
    tx,
    teacher=teacher,
    ema_decay=ema_decay,
    accumulate=accumulate,
    evaluator=evaluator,
  )
  wanted = teacher_taps(objective, teacher)
  outer_tx = optax.adam(outer_learning_rate)

  def init(rng, batch, start=None) -> BilevelState:
    state = inner.init(rng, _train(batch), start)
    return BilevelState(*state, outer_opt_state=outer_tx.init(state.objective_state.params))

  def train_loss(params, weights, state, frozen, told, batch, key):
    """The inner loss; batch statistics of this virtual forward pass are dropped."""
    student_key, objective_key = jax.random.split(key)
    outputs, _ = student.apply(
      ModelVars(params, state.model_state, frozen.student),
      batch,
      taps=objective.taps.student,
      train=True,
      rng=student_key,
    )
    own = ObjectiveVars(weights, state.objective_state.state)
    result = objective.apply(own, outputs, told, batch, step=state.step, rng=objective_key)
    return base.total(result)

  # The second derivative would otherwise keep two forward passes' activations alive.
  @jax.checkpoint
  def virtual_step(weights, state, frozen, told, batch, key):
    grad = jax.grad(train_loss)(state.params, weights, state, frozen, told, batch, key)
    return jax.tree.map(lambda p, g: p - virtual_learning_rate * g, state.params, grad)

  def outer_loss(weights, state, frozen, told, batch, key):
    params = virtual_step(weights, state, frozen, told, _train(batch), key)
    held_out = batch["validation"]
    outputs, _ = student.apply(
      ModelVars(params, state.model_state, frozen.student), held_out, taps=LOGITS
    )
    where = base.valid(held_out, held_out["label"]) & (held_out["label"] >= 0)
    values = losses.cross_entropy(outputs.logits, held_out["label"], where=where)
    num, den = base.masked_sum(values, where)
    return num / jnp.maximum(den, 1)

  def outer_step(state: BilevelState, frozen, batch):
    train = _train(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    told = teacher.apply(frozen.teacher, state.teacher_state, train, taps=wanted)
    weights = state.objective_state.params
    loss, grad = jax.value_and_grad(outer_loss)(
      weights, state, frozen, base.stop_teacher(told), batch, key
    )
    updates, opt_state = outer_tx.update(grad, state.outer_opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    held_state = state.objective_state._replace(params=weights)
    return state._replace(objective_state=held_state, outer_opt_state=opt_state), loss

  def step(state: BilevelState, frozen, batch):
    state, loss = jax.lax.cond(
      state.step % outer_every == 0,
      lambda s: outer_step(s, frozen, batch),
      lambda s: (s, jnp.float32(0)),
      state,
    )
    ran = (state.step % outer_every == 0).astype(jnp.float32)
    after, metrics = inner.step(DistillState(*state[:-1]), frozen, _train(batch))
    return BilevelState(*after, state.outer_opt_state), metrics | {"validation_loss": (loss, ran)}

  def axes(state: BilevelState) -> BilevelState:
    weights = replicated(state.objective_state.params)
    return BilevelState(
      *inner.axes(DistillState(*state[:-1])),
      outer_opt_state=optimizer_axes(outer_tx, state.outer_opt_state, weights),
    )

  prepare = None
  if inner.prepare is not None:

    def prepare(state: BilevelState, frozen, batch):
      return BilevelState(
        *inner.prepare(DistillState(*state[:-1]), frozen, batch), state.outer_opt_state
      )

  return inner._replace(
    init=init, step=step, axes=axes, prepare=prepare, streams=("train", "validation")
  )


def held(objective: Objective) -> Objective:
  """The objective with its parameters carried as state, out of reach of the student's optimiser.

  Returns:
    An objective without params whose state is `ObjectiveVars(params, state)`.
  """

  def init(rng, student, teacher, batch):
    return ObjectiveVars(state=objective.init(rng, student, teacher, batch))

  def apply(variables, *args, **kwargs):
    return objective.apply(jax.lax.stop_gradient(variables.state), *args, **kwargs)

  def update(state, stats, *, step):
    return state._replace(state=objective.update(state.state, stats, step=step))

  def prepare(variables, teacher, batch):
    return ObjectiveVars(state=objective.prepare(variables.state, teacher, batch))

  return objective._replace(
    init=init, apply=apply, update=update, prepare=objective.prepare and prepare
  )


def _train(batch):
  return {name: value for name, value in batch.items() if name != "validation"}
