"""DistiLLM: the student learns from its own texts, new or kept, as often as validation says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax import objectives
from kdjax.errors import KdjaxError
from kdjax.generation import Sampling
from kdjax.models.base import Model, ModelVars
from kdjax.objectives.base import Objective, total
from kdjax.programs import rollouts
from kdjax.programs.base import Program
from kdjax.programs.distill import DistillState, Frozen, distill, replicated
from kdjax.programs.evaluators import CHUNK, Evaluator, classifier
from kdjax.programs.on_policy import (
  as_written,
  check_corrections,
  check_room,
  check_writing,
  length_metrics,
  teller,
)
from kdjax.teachers.base import Teacher

Rows = Mapping[str, Array]
DATA, WRITE, REPLAY = range(3)


class Replay(NamedTuple):
  """Rows that were written, the oldest of them replaced first.

  Attributes:
    rows: arrays [capacity, T].
    size: how many there are.
    next: where the next one goes.
  """

  rows: Rows
  size: Int[Array, ""]
  next: Int[Array, ""]


class Threshold(NamedTuple):
  """How often the student learns from its own texts.

  Attributes:
    value: phi, from 0 to 1.
    reference: the validation loss that raised it last; before, that of the start.
  """

  value: Float[Array, ""]
  reference: Float[Array, ""]


AdaptiveState = NamedTuple(
  "AdaptiveState",
  [*DistillState.__annotations__.items(), ("replay", Any), ("threshold", Any)],
)


def adaptive_replay(
  student: Model,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher,
  total_steps: int,
  prompt_length: int,
  validate_every: int,
  capacity: int = 1000,
  increment: float = 0.1,
  margin: float = 0.1,
  corrections: int = 0,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  eos_ids: Sequence[int] = (),
  ema_decay: float | None = None,
  accumulate: int = 1,
  evaluator: Evaluator = classifier,
) -> Program:
  """`distill` with DistiLLM's adaptive off-policy schedule.

  Every `validate_every` steps the student's cross-entropy on validation rows is taken; where it is
  `margin` above the reference, phi grows by `increment` and the loss becomes the reference. Then a
  number u is drawn, the same on all hosts: if u < phi (1 - step / total), or u < phi while the
  buffer is not full, the student writes, learns from that and puts it into the buffer; else if
  u < phi it learns from rows of the buffer; else from data.

  Args:
    student: a causal language model.
    objective: what to minimise; DistiLLM's are the skewed divergences.
    tx: the optimiser.
    teacher: live.
    total_steps: of the run.
    prompt_length: see `on_policy`.
    validate_every: steps.
    capacity: rows of the buffer, at least a batch.
    increment: of phi.
    margin: of the validation loss, in nats.
    corrections: see `on_policy`; what is kept has been corrected.
    temperature: of the drawing.
    top_k: of the drawing.
    top_p: of the drawing.
    eos_ids: tokens that end a text.
    ema_decay: see `distill`.
    accumulate: see `distill`.
    evaluator: see `distill`.

  Returns:
    A program over the streams "train" and "validation"; buffer and phi are state. Rows have
    `written` [B], whether they are the student's.

  Raises:
    KdjaxError: see `on_policy`; a buffer smaller than a batch.

  Reference:
    Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
    algorithm 1, https://arxiv.org/abs/2402.03898; jongwooko/distillm, finetune.py. Theirs validates
    on the whole validation set, here on one batch of it, as the loss travels no further than the
    step.
  """
  sampling = Sampling(temperature, top_k, top_p)
  check_writing(student, teacher, prompt_length, sampling, eos_ids)
  check_corrections(student, teacher, corrections)
  for name, value in (("validate_every", validate_every), ("total_steps", total_steps)):
    if value < 1:
      raise KdjaxError(f"config.program.{name} = {value} must be at least 1")
  if not 0 < increment <= 1:
    raise KdjaxError(f"config.program.increment = {increment} must lie in (0, 1]")
  inner = distill(
    student,
    objective,
    tx,
    teacher=teacher,
    ema_decay=ema_decay,
    accumulate=accumulate,
    evaluator=evaluator,
  )
  held_out = objectives.cross_entropy(chunk_size=CHUNK)

  def init(rng, batch, start=None) -> AdaptiveState:
    rows = _unwritten(batch)
    check_room(student, prompt_length, rows)
    size = len(rows["tokens"])
    if capacity < size:
      raise KdjaxError(
        f"config.program.capacity = {capacity} holds no batch of config.batch_size = {size}"
      )
    state = inner.init(rng, rows, start)
    empty = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), rows)
    return AdaptiveState(
      *state,
      replay=Replay(empty, jnp.int32(0), jnp.int32(0)),
      threshold=Threshold(jnp.float32(0), jnp.float32(0)),
    )

  def validation_loss(state, frozen: Frozen, rows) -> Float[Array, ""]:
    variables = ModelVars(state.params, state.model_state, frozen.student)
    outputs, _ = student.apply(variables, rows, taps=held_out.taps.student)
    return total(held_out.apply((), outputs, None, rows, step=state.step, rng=None))

  def step(state: AdaptiveState, frozen: Frozen, batch):
    rows, inner_state = _unwritten(batch), DistillState(*state[: len(DistillState._fields)])
    threshold = jax.lax.cond(
      state.step % validate_every == 0,
      lambda: raised(
        state.threshold,
        validation_loss(state, frozen, batch["validation"]),
        first=state.step == 0,
        increment=increment,
        margin=margin,
      ),
      lambda: state.threshold,
    )
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    coin, draws, places = jax.random.split(jax.random.fold_in(key, 1), 3)
    source = chosen(
      jax.random.uniform(coin),
      threshold.value,
      (state.step + 1) / total_steps,
      full=state.replay.size >= capacity,
    )

    def write():
      variables = ModelVars(state.params, state.model_state, frozen.student)
      new = rollouts.write(
        student.decode(jax.lax.stop_gradient(variables)),
        rollouts.beginnings(rows, prompt_length),
        rows["tokens"].shape[1],
        rng=draws,
        sampling=sampling,
        eos_ids=eos_ids,
        corrections=corrections,
        tell=teller(student, teacher, state, frozen),
      )
      new = {name: new.get(name, jnp.ones_like(value)) for name, value in rows.items()}
      return new, pushed(state.replay, new)

    learnt, replay = jax.lax.switch(
      source,
      [
        lambda: (rows, state.replay),
        write,
        lambda: (sampled(state.replay, places, len(rows["tokens"])), state.replay),
      ],
    )
    after, metrics = inner.step(inner_state, frozen, learnt)
    one = jnp.float32(1)
    metrics |= length_metrics(learnt, source == WRITE)
    metrics |= {
      "replayed": ((source == REPLAY).astype(jnp.float32), one),
      "threshold": (threshold.value, one),
      "threshold/reference": (threshold.reference, one),
    }
    return AdaptiveState(*after, replay=replay, threshold=threshold), metrics

  def axes(state: AdaptiveState) -> AdaptiveState:
    own = inner.axes(DistillState(*state[: len(DistillState._fields)]))
    return AdaptiveState(
      *own, replay=replicated(state.replay), threshold=Threshold(PartitionSpec(), PartitionSpec())
    )

  prepare = None
  if inner.prepare is not None:

    def prepare(state: AdaptiveState, frozen, batch):
      own = inner.prepare(DistillState(*state[: len(DistillState._fields)]), frozen, batch)
      return AdaptiveState(*own, replay=state.replay, threshold=state.threshold)

  return inner._replace(
    init=init, step=step, axes=axes, prepare=prepare, streams=("train", "validation")
  )


def raised(
  threshold: Threshold, loss: Array, *, first, increment: float, margin: float
) -> Threshold:
  """The threshold after a validation; the first one only sets the reference."""
  worse = ~first & (loss >= threshold.reference + margin)
  return Threshold(
    jnp.where(worse, jnp.minimum(threshold.value + increment, 1.0), threshold.value),
    jnp.where(first | worse, loss, threshold.reference),
  )


def chosen(u: Array, phi: Array, progress: Array, *, full: Array) -> Int[Array, ""]:
  """Where a step's rows come from: DATA, WRITE or REPLAY.

  Args:
    u: drawn from [0, 1).
    phi: the threshold.
    progress: steps so far, this one among them, over all steps.
    full: whether the buffer is.
  """
  new = (u < phi * (1 - progress)) | ((u < phi) & ~full)
  return jnp.where(new, WRITE, jnp.where(u < phi, REPLAY, DATA))


def pushed(replay: Replay, rows: Rows) -> Replay:
  """The buffer with rows [B, ...] in place of its oldest."""
  count, capacity = (len(jax.tree.leaves(tree)[0]) for tree in (rows, replay.rows))
  places = (replay.next + jnp.arange(count)) % capacity
  kept = jax.tree.map(lambda old, new: old.at[places].set(new), replay.rows, dict(rows))
  return Replay(kept, jnp.minimum(replay.size + count, capacity), (replay.next + count) % capacity)


def sampled(replay: Replay, rng: Array, count: int) -> dict[str, Array]:
  """`count` different rows of a buffer that holds at least as many."""
  capacity = len(jax.tree.leaves(replay.rows)[0])
  # The least of random numbers, among the places that are taken.
  keys = jnp.where(jnp.arange(capacity) < replay.size, jax.random.uniform(rng, (capacity,)), 2.0)
  places = jnp.argsort(keys)[:count]
  return jax.tree.map(lambda x: x[places], dict(replay.rows))


def _unwritten(batch) -> Rows:
  """The rows of the training stream, marked as data."""
  rows = as_written({name: value for name, value in batch.items() if name != "validation"})
  return rows | {"written": jnp.zeros(len(rows["tokens"]), bool)}
