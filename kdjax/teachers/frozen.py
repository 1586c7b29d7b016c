"""A frozen model as teacher, and several of them as one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.errors import KdjaxError
from kdjax.models.adapters import quantize_params, quantized_axes
from kdjax.models.base import Model, ModelVars
from kdjax.outputs import Outputs
from kdjax.teachers.base import Teacher


def frozen(model: Model, variables: ModelVars, *, dtype: str | None = None) -> Teacher:
  """A model that never changes, run in evaluation mode beside the student.

  Args:
    model: any model.
    variables: its weights, concrete or abstract.
    dtype: stores the floating-point parameters in this type, such as "bfloat16"; None leaves them.
      "int8" rounds the linear layers of a transformer's blocks, one scale for each output.

  Returns:
    The teacher; it offers all of the model's taps, `segment` included.
  """
  if dtype == "int8":
    variables = variables._replace(params=quantize_params(variables.params))
  elif dtype is not None:

    def cast(x):
      return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    variables = variables._replace(params=jax.tree.map(cast, variables.params))

  def apply(weights, state, batch, *, taps):
    outputs, _ = model.apply(jax.lax.stop_gradient(weights), batch, taps=taps, train=False)
    return jax.lax.stop_gradient(outputs)

  axes = model.axes()
  return Teacher(
    apply=apply,
    taps=model.taps,
    num_classes=model.num_classes,
    frozen=variables,
    axes=axes._replace(params=quantized_axes(axes.params, variables.params)),
  )


def ensemble(teachers: Sequence[Teacher], *, weights: Sequence[float] | None = None) -> Teacher:
  """Several teachers as one: the logarithm of the weighted mean of their probabilities.

  Args:
    teachers: at least one, with the same number of classes; none that follows the student.
    weights: one per teacher, positive; equal by default. They are divided by their sum.

  Returns:
    A teacher that offers the tap "logits" (log-probabilities of the mixture).

  Raises:
    KdjaxError: no teachers, differing class counts, or weights that do not fit.
  """
  if not teachers:
    raise KdjaxError("ensemble: teachers is empty; give at least one")
  classes = {teacher.num_classes for teacher in teachers}
  if len(classes) > 1:
    raise KdjaxError(f"ensemble: the teachers have different class counts {sorted(classes)}")
  weights = [1.0] * len(teachers) if weights is None else list(weights)
  if len(weights) != len(teachers) or min(weights) <= 0:
    raise KdjaxError(
      f"ensemble: weights = {weights} must be {len(teachers)} positive numbers, one per teacher"
    )
  shares = [weight / sum(weights) for weight in weights]

  def apply(frozen_weights, state, batch, *, taps):
    parts = [
      teacher.apply(own, (), batch, taps=frozenset({"logits"})).logits
      for teacher, own in zip(teachers, frozen_weights, strict=True)
    ]
    log_probs = jnp.stack([jax.nn.log_softmax(part.astype(jnp.float32)) for part in parts])
    share = jnp.asarray(shares, jnp.float32).reshape((-1,) + (1,) * (log_probs.ndim - 1))
    return Outputs(logits=jax.nn.logsumexp(log_probs, axis=0, b=share))

  return Teacher(
    apply=apply,
    taps=frozenset({"logits"}),
    num_classes=classes.pop(),
    frozen=tuple(teacher.frozen for teacher in teachers),
    axes=tuple(teacher.axes for teacher in teachers),
  )
