"""Supervised distillation: a student, any teacher, any objective, one optimiser."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models.base import Model, ModelVars, overlay
from kdjax.objectives import base
from kdjax.objectives.base import Objective, ObjectiveVars
from kdjax.outputs import Outputs
from kdjax.programs.base import Program, Start
from kdjax.programs.evaluators import Evaluator, classifier
from kdjax.programs.views import both_views
from kdjax.teachers.base import Teacher
from kdjax.teachers.ema import average

PyTree = Any
NO_TEACHER = Teacher(apply=lambda *a, **k: Outputs(), taps=frozenset(), num_classes=0)


class Frozen(NamedTuple):
  """What training reads and never changes."""

  teacher: PyTree = ()
  student: PyTree = ()  # weights under an adapter


class DistillState(NamedTuple):
  """Everything that training changes."""

  step: jax.Array
  params: PyTree  # of the student
  model_state: PyTree  # batch statistics of the student
  objective_params: PyTree
  objective_state: PyTree
  teacher_state: PyTree
  opt_state: PyTree
  ema: PyTree  # moving average of params, () without
  rng: jax.Array  # key data


def global_norm(tree: PyTree) -> jax.Array:
  """The 2-norm of all of a tree's real arrays as one vector, float32.

  Halves are squared, where `optax.global_norm` squares whole values: XLA would take those for the
  squares that Adam's second moment needs, and on CPUs write them out once for both, an array of the
  size of the largest weight.
  """

  def squares(x):
    return 4 * jnp.square(0.5 * x.astype(jnp.float32)).sum()

  return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), jnp.float32(0)))


def distill(
  student: Model,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher | None = None,
  ema_decay: float | None = None,
  accumulate: int = 1,
  evaluator: Evaluator = classifier,
) -> Program:
  """The program that trains a student on an objective.

  Per step: the teacher's outputs, the student's, the objective's terms averaged over the valid
  elements of the whole batch, one gradient with respect to the student's and the objective's
  parameters, one optimiser step, then the carried states.

  Args:
    student: the model to train.
    objective: what to minimise.
    tx: the optimiser over `{"student": params, "objective": params}`.
    teacher: any; None for an objective that reads labels alone.
    ema_decay: in [0, 1); keeps an average of the student's weights, which evaluation then uses.
    accumulate: micro-batches per step. The update is that of the whole batch: terms are divided by
      the counts of all micro-batches.
    evaluator: what to evaluate; see `kdjax.programs.evaluators`.

  Returns:
    The program.

  Raises:
    KdjaxError: taps that a model cannot give, differing class counts, values out of range.
  """
  teacher = teacher or NO_TEACHER
  check_pairing(student, teacher, objective)
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise KdjaxError(f"config.optimizer.ema_decay = {ema_decay} must lie in [0, 1)")
  if accumulate < 1:
    raise KdjaxError(f"config.optimizer.accumulate = {accumulate} must be at least 1")

  frozen_parts = Frozen(teacher.frozen, student.frozen)
  wanted = teacher_taps(objective, teacher)

  def init(rng, batch, start: Start | None = None) -> DistillState:
    student_rng, objective_rng, step_rng = jax.random.split(rng, 3)
    variables = student.init(student_rng)
    if start is not None:
      given = ModelVars(start.params, start.model_state)
      variables = overlay(ModelVars(variables.params, variables.state), given)
    teacher_state = teacher.init(variables)
    batch = both_views(batch)
    outputs = output_shapes(student, teacher, objective, variables, teacher_state, batch)
    own = objective.init(objective_rng, *outputs, batch)
    if start is not None:
      own = own._replace(params=carried(own.params, start.objective_params))
    trained = {"student": variables.params, "objective": own.params}
    return DistillState(
      step=jnp.int32(0),
      params=variables.params,
      model_state=variables.state,
      objective_params=own.params,
      objective_state=own.state,
      teacher_state=teacher_state,
      opt_state=tx.init(trained),
      ema=() if ema_decay is None else jax.tree.map(jnp.copy, variables.params),
      rng=jax.random.key_data(step_rng),
    )

  def forward(trained, state, frozen, batch, model_state, key):
    """One (micro-)batch: the objective's result and the student's new batch statistics."""
    student_key, objective_key = jax.random.split(key)
    batch = both_views(batch)
    told = teacher.apply(frozen.teacher, state.teacher_state, batch, taps=wanted)
    outputs, model_state = student.apply(
      ModelVars(trained["student"], model_state, frozen.student),
      batch,
      taps=objective.taps.student,
      train=True,
      rng=student_key,
    )
    own = ObjectiveVars(trained["objective"], state.objective_state)
    result = objective.apply(
      own, outputs, base.stop_teacher(told), batch, step=state.step, rng=objective_key
    )
    return result, model_state

  def loss_fn(trained, state, frozen, batch, model_state, key, count):
    result, model_state = forward(trained, state, frozen, batch, model_state, key)
    loss = base.total(result, count)
    return loss, (model_state, loss, base.metrics(result), result.stats)

  gradient = jax.grad(loss_fn, has_aux=True)

  def gradients(trained, state, frozen, batch, key):
    """(gradient, (batch statistics, loss, metrics, stats with a leading micro-batch axis))."""
    if accumulate == 1:
      grad, (model_state, loss, metrics, stats) = gradient(
        trained, state, frozen, batch, state.model_state, key, None
      )
      return grad, (model_state, loss, metrics, jax.tree.map(lambda x: x[None], stats))
    micro = split_batch(batch, accumulate)
    keys = jax.random.split(key, accumulate)

    # Only the counts are used, so that the compiler drops this forward pass but for its masks.
    def count_one(part):
      result, _ = forward(trained, state, frozen, part[0], state.model_state, part[1])
      return base.counts(result)

    count = jax.tree.map(lambda c: c.sum(0), jax.lax.map(count_one, (micro, keys)))

    def body(carry, part):
      grad_sum, model_state = carry
      grad, (model_state, *rest) = gradient(
        trained, state, frozen, part[0], model_state, part[1], count
      )
      return (jax.tree.map(jnp.add, grad_sum, grad), model_state), tuple(rest)

    start = (jax.tree.map(jnp.zeros_like, trained), state.model_state)
    (grad, model_state), (loss, metrics, stats) = jax.lax.scan(body, start, (micro, keys))
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    return grad, (model_state, loss.sum(), metrics, stats)

  def step(state: DistillState, frozen, batch):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    trained = {"student": state.params, "objective": state.objective_params}
    grad, (model_state, loss, metrics, stats) = gradients(trained, state, frozen, batch, key)
    updates, opt_state = tx.update(grad, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    variables = ModelVars(trained["student"], model_state)
    one = jnp.float32(1)
    metrics = {"loss": (loss, one), "grad_norm": (global_norm(grad), one), **metrics}
    return DistillState(
      step=state.step + 1,
      params=variables.params,
      model_state=model_state,
      objective_params=trained["objective"],
      objective_state=objective.update(state.objective_state, stats, step=state.step),
      teacher_state=teacher.update(state.teacher_state, variables, step=state.step),
      opt_state=opt_state,
      ema=() if ema_decay is None else average(state.ema, variables.params, ema_decay),
      rng=state.rng,
    ), metrics

  def prepare(state: DistillState, frozen, batch):
    # Nothing is stored about rows that are held out: a live teacher is asked.
    taps = wanted if objective.prepare_on == "train" else objective.taps.teacher
    told = teacher.apply(frozen.teacher, state.teacher_state, batch, taps=taps)
    own = objective.prepare(
      ObjectiveVars(state.objective_params, state.objective_state), told, batch
    )
    return state._replace(objective_params=own.params, objective_state=own.state)

  metrics_of = evaluator(student, teacher)

  def evaluate(state: DistillState, frozen, batch):
    params = state.ema if jax.tree.leaves(state.ema) else state.params
    variables = ModelVars(params, state.model_state, frozen.student)
    return metrics_of(
      variables,
      lambda taps, asked=batch: teacher.apply(
        frozen.teacher, state.teacher_state, asked, taps=taps
      ),
      batch,
    )

  def axes(state: DistillState) -> DistillState:
    own = student.axes()
    trained = {"student": own.params, "objective": replicated(state.objective_params)}
    return DistillState(
      step=PartitionSpec(),
      params=own.params,
      model_state=own.state,
      objective_params=trained["objective"],
      objective_state=replicated(state.objective_state),
      teacher_state=teacher.state_axes(own),
      opt_state=optimizer_axes(tx, state.opt_state, trained),
      ema=() if ema_decay is None else own.params,
      rng=PartitionSpec(),
    )

  return Program(
    init=init,
    step=step,
    evaluate=evaluate,
    axes=axes,
    frozen=frozen_parts,
    frozen_axes=Frozen(teacher.axes, student.frozen_axes),
    prepare=None if objective.prepare is None else prepare,
    prepare_on=objective.prepare_on,
  )


def carried(own: PyTree, given: PyTree) -> PyTree:
  """`own`, with the arrays of `given` that have the same path, shape and dtype in their place."""
  found = dict(jax.tree_util.tree_leaves_with_path(given))

  def one(path, leaf):
    other = found.get(path, leaf)
    same = other.shape == leaf.shape and other.dtype == leaf.dtype
    return other if same else leaf

  return jax.tree_util.tree_map_with_path(one, own)


def teacher_taps(objective: Objective, teacher: Teacher) -> frozenset[str]:
  """What to ask the teacher for: one that speaks in signals gives those in place of logits."""
  taps = objective.taps.teacher
  logits = taps & {"logits", "hidden", "head"}
  return taps - logits | {"signal"} if logits and "signal" in teacher.taps else taps


def check_pairing(student: Model, teacher: Teacher, objective: Objective) -> None:
  """Raises KdjaxError for taps that a side cannot give and for class counts that do not pair."""
  for side, wanted, given in (
    ("student", objective.taps.student, student.taps),
    ("teacher", teacher_taps(objective, teacher), teacher.taps),
  ):
    if missing := wanted - given:
      raise KdjaxError(
        f"config.objective asks for the tap(s) {sorted(missing)} of the {side}, which"
        f" config.{side} cannot give; it gives {sorted(given) or 'nothing'}"
      )
  if objective.prepare and objective.prepare_on != "train" and not teacher.anywhere:
    raise KdjaxError(
      "config.objective is prepared on held-out rows, of which config.teacher.cache holds nothing;"
      " give config.teacher.checkpoint too, or what would be prepared (first: temperature)"
    )
  if objective.pairs_classes and student.num_classes != teacher.num_classes:
    raise KdjaxError(
      f"student and teacher have different class counts: config.student has"
      f" {student.num_classes}, config.teacher has {teacher.num_classes}; an objective on logits"
      " needs the same classes in the same order"
    )


def output_shapes(student, teacher, objective, variables, teacher_state, batch):
  """What both sides will hand over, as shapes: (student outputs, teacher outputs)."""
  outputs, _ = jax.eval_shape(
    lambda v, b, k: student.apply(v, b, taps=objective.taps.student, train=True, rng=k),
    variables._replace(frozen=student.frozen),
    batch,
    jax.random.key(0),
  )
  told = jax.eval_shape(
    lambda f, s, b: teacher.apply(f, s, b, taps=teacher_taps(objective, teacher)),
    teacher.frozen,
    teacher_state,
    batch,
  )
  return outputs, told


def split_batch(batch: PyTree, parts: int) -> PyTree:
  """[B, ...] to [parts, B / parts, ...]; a micro-batch takes rows from every device's share."""

  def split(x):
    if x.shape[0] % parts:
      raise KdjaxError(
        f"config.batch_size = {x.shape[0]} is not divisible by"
        f" config.optimizer.accumulate = {parts}"
      )
    return jnp.swapaxes(x.reshape((x.shape[0] // parts, parts) + x.shape[1:]), 0, 1)

  return jax.tree.map(split, batch)


def replicated(tree: PyTree) -> PyTree:
  """A `PartitionSpec()` per leaf."""
  return jax.tree.map(lambda _: PartitionSpec(), tree)


def optimizer_axes(tx: optax.GradientTransformation, opt_state: PyTree, axes: PyTree) -> PyTree:
  """Axis names of an optimiser's state: those of the parameter where a leaf follows one."""
  return optax.tree.map_params(
    tx,
    lambda _, spec: spec,
    opt_state,
    axes,
    transform_non_params=lambda _: PartitionSpec(),
  )
