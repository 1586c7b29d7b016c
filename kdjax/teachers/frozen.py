"""A frozen model as teacher, and several of them as one."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.errors import KdjaxError
from kdjax.losses.several import combine_teachers
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
    decode=model.decode and (lambda weights: model.decode(jax.lax.stop_gradient(weights))),
  )


def ensemble(
  teachers: Sequence[Teacher],
  *,
  weights: Sequence[float] | None = None,
  rule: str = "probabilities",
  temperature: float = 1.0,
) -> Teacher:
  """Several teachers as one, by the weighted mean of their probabilities or of their logits.

  Args:
    teachers: at least one, with the same number of classes; none that follows the student.
    weights: one per teacher, positive; equal by default. They are divided by their sum.
    rule: "probabilities" or "logits", see `kdjax.losses.combine_teachers`.
    temperature: of the loss, at which probabilities are mixed.

  Returns:
    A teacher that offers the tap "logits".

  Raises:
    KdjaxError: no teachers, differing class counts, or other arguments that do not fit.
  """
  if not teachers:
    raise KdjaxError("ensemble: teachers is empty; give at least one")
  classes = {teacher.num_classes for teacher in teachers}
  if len(classes) > 1:
    raise KdjaxError(f"ensemble: the teachers have different class counts {sorted(classes)}")
  combine = functools.partial(combine_teachers, rule=rule, weights=weights, temperature=temperature)
  # A wrong option is told here, before anything runs.
  jax.eval_shape(combine, jax.ShapeDtypeStruct((len(teachers), max(classes)), jnp.float32))

  def apply(frozen_weights, state, batch, *, taps):
    parts = [
      teacher.apply(own, (), batch, taps=frozenset({"logits"})).logits.astype(jnp.float32)
      for teacher, own in zip(teachers, frozen_weights, strict=True)
    ]
    return Outputs(logits=combine(jnp.stack(parts)))

  return Teacher(
    apply=apply,
    taps=frozenset({"logits"}),
    num_classes=classes.pop(),
    frozen=tuple(teacher.frozen for teacher in teachers),
    axes=tuple(teacher.axes for teacher in teachers),
  )
