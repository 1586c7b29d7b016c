"""TAID: distil towards a target that moves from the student to the teacher."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  masked_sum,
  mean,
)
from kdjax.objectives.combinators import combine
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.tokens import logit_taps, map_logits


class TaidState(NamedTuple):
  t: Float[Array, ""]  # share of the teacher in the target
  previous_loss: Float[Array, ""]  # inf before the first step
  momentum: Float[Array, ""]  # of the loss's relative decrease


def taid(
  *,
  total_steps: int,
  t_start: float = 0.4,
  t_end: float = 1.0,
  alpha: float = 5e-4,
  beta: float = 0.99,
  adaptive: bool = True,
  ce_weight: float = 0.0,
  chunk_size: int | None = None,
) -> Objective:
  """Cross-entropy with softmax((1 - t) student + t teacher), t rising from `t_start` to `t_end`.

  t follows at least the straight line over `total_steps`, and runs ahead of it when the loss falls.
  The adaptive part only shows when 0.5 alpha (1 - t_start) > (t_end - t_start) / total_steps, that
  is beyond 4,000 steps with the defaults.

  Args:
    total_steps: length of the run; give `config.total_steps`.
    t_start: in [0, 1): 0.4 or 0.2 in the paper.
    t_end: in (t_start, 1].
    alpha: in [0, 1]; the largest adaptive increase of t per step.
    beta: in [0, 1]; momentum of the loss's relative decrease.
    adaptive: False follows the line only.
    ce_weight: r of the paper is 1 - ce_weight: labels weigh ce_weight, the moving target the rest.
    chunk_size: see `token_level`.

  Returns:
    An objective with the state (t, previous loss, momentum). t is updated once per optimiser step
    from the mean loss of the whole batch; the official code does so per micro-batch and device.

  Raises:
    KdjaxError: a value out of range.

  Reference:
    Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
    Transfer in Language Models", ICLR 2025, https://arxiv.org/abs/2501.16937
    (SakanaAI/TAID, src/distil_losses/taid.py).
  """
  if not 0 <= t_start < t_end <= 1:
    raise KdjaxError(
      f"taid: t_start = {t_start}, t_end = {t_end}; 0 <= t_start < t_end <= 1 wanted"
    )
  for name, value in (("alpha", alpha), ("beta", beta), ("ce_weight", ce_weight)):
    if not 0 <= value <= 1:
      raise KdjaxError(f"taid: {name} = {value} must lie in [0, 1]")
  if total_steps < 1:
    raise KdjaxError(f"taid: total_steps = {total_steps} must be at least 1")

  def init(rng, student, teacher, batch):
    state = TaidState(jnp.float32(t_start), jnp.float32(jnp.inf), jnp.float32(0))
    return ObjectiveVars(state=state)

  def apply(variables, student, teacher, batch, *, step, rng):
    t = variables.state.t
    term, _ = map_logits(
      functools.partial(losses.interpolated_cross_entropy, mix=t),
      student,
      teacher,
      batch,
      chunk_size=chunk_size,
    )
    return ObjectiveResult(
      {"": term}, {"t": (t, jnp.float32(1))}, masked_sum(term.values, term.where)
    )

  def update(state: TaidState, stats, *, step) -> TaidState:
    loss = jax.lax.stop_gradient(mean(stats))
    # The official progress is global_step / num_train_steps with the step not yet counted.
    line = t_start + (t_end - t_start) * step.astype(jnp.float32) / total_steps
    decrease = (state.previous_loss - loss) / (state.previous_loss + 1e-15)
    momentum = beta * state.momentum + (1 - beta) * decrease
    ahead = state.t + alpha * jax.nn.sigmoid(momentum) * (1 - state.t)
    t = jnp.minimum(t_end, jnp.maximum(line, ahead)) if adaptive else line
    first = jnp.isinf(state.previous_loss)
    return TaidState(
      t=jnp.where(first, state.t, t),
      previous_loss=loss,
      momentum=jnp.where(first, state.momentum, momentum),
    )

  moving = Objective(apply=apply, taps=logit_taps(chunk_size), init=init, update=update)
  terms = {"kd": (1 - ce_weight, moving)}
  if ce_weight:
    terms["ce"] = (ce_weight, cross_entropy(chunk_size=chunk_size))
  return combine(terms)
