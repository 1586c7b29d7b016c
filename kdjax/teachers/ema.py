"""The student's own exponential moving average as teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdjax.errors import KdjaxError
from kdjax.models.base import Model, ModelVars
from kdjax.teachers.base import Teacher


def ema(model: Model, *, decay: float = 0.999, warmup: bool = True) -> Teacher:
  """A teacher whose weights follow the student's: w <- d w + (1 - d) student.

  Args:
    model: the student's architecture.
    decay: d, in [0, 1).
    warmup: use min(decay, 1 - 1 / (step + 1)) so that early steps forget the random start; step
      counts from 0, so the first update copies the student.

  Returns:
    A teacher with state: parameters and batch statistics, both averaged.

  Raises:
    KdjaxError: decay outside [0, 1).

  Reference:
    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017,
    https://arxiv.org/abs/1703.01780 (the warm-up is that of its official code).
  """
  if not 0 <= decay < 1:
    raise KdjaxError(f"ema: decay = {decay} must lie in [0, 1)")

  def init(student: ModelVars) -> ModelVars:
    return jax.tree.map(jnp.copy, student)  # a buffer of its own: the student's is donated

  def apply(weights, state, batch, *, taps):
    outputs, _ = model.apply(jax.lax.stop_gradient(state), batch, taps=taps, train=False)
    return jax.lax.stop_gradient(outputs)

  def update(state, student, *, step):
    d = jnp.float32(decay)
    if warmup:
      d = jnp.minimum(d, 1 - 1 / (step.astype(jnp.float32) + 1))
    return average(state, student, d)

  return Teacher(
    apply=apply,
    taps=model.taps,
    num_classes=model.num_classes,
    init=init,
    update=update,
    state_axes=lambda student_axes: student_axes,
  )


def average(old, new, decay):
  """decay * old + (1 - decay) * new, leaf by leaf; integer leaves are taken from `new`."""

  def leaf(a, b):
    if not jnp.issubdtype(a.dtype, jnp.floating):
      return b
    d = jnp.asarray(decay, a.dtype)
    return d * a + (1 - d) * b

  return jax.tree.map(leaf, old, new)
