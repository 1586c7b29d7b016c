"""What the losses share: checks on arguments, masking, and the two sums that they are made of.

After `align` the classes are on the last axis, everything is float32 and no row holds a value that
could leak through a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import signals

# A probability below this is taken as 0. Its reciprocal is still finite in float32.
TINY = float(jnp.finfo(jnp.float32).tiny)


class Rows(NamedTuple):
  """Logits of both models after temperature, [..., V], and which rows count (None: all)."""

  student: Float[Array, "*batch vocab"]
  teacher: Float[Array, "*batch vocab"]
  where: Bool[Array, "*batch"] | None


def align(
  loss: str, student, teacher, *, temperature, axis: int, where, same_classes: bool = True
) -> Rows:
  """Checks the arguments that every logits loss has and brings them into one form.

  Without `same_classes` the two sides need only have the same rows.
  """
  check_temperature(loss, temperature)
  student = jnp.asarray(student)
  teacher = jax.lax.stop_gradient(dense_logits(loss, teacher, axis))
  if same_classes:
    check_same_shape(loss, "student_logits", student, "teacher_logits", teacher)
  else:
    check_same_rows(loss, student, teacher, axis)
  student, teacher = classes_last(loss, student, axis), classes_last(loss, teacher, axis)
  where = check_where(loss, where, student.shape[:-1])
  return Rows(
    divide(clean(student, where), temperature), divide(clean(teacher, where), temperature), where
  )


def dense_logits(loss: str, teacher, axis: int = -1) -> Array:
  """The logits of a teacher argument: an array, `Dense` or `HiddenHead`."""
  if isinstance(teacher, signals.TopK | signals.Sampled):
    kind = type(teacher).__name__
    use = "sparse_cross_entropy" if isinstance(teacher, signals.Sampled) else "sparse_forward_kl"
    raise KdjaxError(
      f"{loss} needs the teacher's logits for every class, but got the signal {kind}, which holds "
      f"{teacher.support}; use kdjax.losses.{use}, or store Dense or HiddenHead signals"
    )
  if isinstance(teacher, signals.HiddenHead):
    return jnp.moveaxis(teacher.logits, -1, axis)
  return jnp.asarray(teacher.logits if isinstance(teacher, signals.Dense) else teacher)


def classes_last(loss: str, logits: Array, axis: int) -> Array:
  if not -logits.ndim <= axis < logits.ndim:
    raise KdjaxError(
      f"{loss}: axis is {axis}, but the logits have shape {logits.shape}; name one of their axes"
    )
  return jnp.moveaxis(logits, axis, -1)


def clean(x: Array, where: Bool[Array, "*batch"] | None) -> Array:
  """float32 with rows that do not count set to 0: the first half of the double `where`."""
  x = x.astype(jnp.float32)
  if where is None:
    return x
  return jnp.where(jnp.broadcast_to(jnp.expand_dims(where, -1), x.shape), x, 0.0)


def masked(values: Array, where: Bool[Array, "*batch"] | None) -> Array:
  """The second half of the double `where`."""
  return values if where is None else jnp.where(where, values, 0.0)


def divide(logits: Array, temperature) -> Array:
  # -inf is kept out of the quotient, whose derivative by a learned temperature would be nan.
  finite = logits > -jnp.inf
  # A nan logit compares False too and must stay visible.
  finite = finite | jnp.isnan(logits)
  scaled = jnp.where(finite, logits, 0.0) / jnp.asarray(temperature, jnp.float32)
  return jnp.where(finite, scaled, -jnp.inf)


def check_temperature(loss: str, temperature) -> None:
  if jnp.ndim(temperature) != 0:
    raise KdjaxError(
      f"{loss}: temperature has shape {jnp.shape(temperature)}; it must be a scalar > 0"
    )
  if not isinstance(temperature, jax.Array) and not temperature > 0:
    raise KdjaxError(f"{loss}: temperature is {temperature}; it must be > 0")


def check_unit(loss: str, name: str, value) -> None:
  """Checks a concrete number against [0, 1]; traced ones pass."""
  if not isinstance(value, jax.Array) and not 0 <= value <= 1:
    raise KdjaxError(f"{loss}: {name} is {value}; it must lie between 0 and 1")


def check_same_shape(loss: str, name_a: str, a: Array, name_b: str, b: Array) -> None:
  if a.shape != b.shape or a.ndim == 0:
    raise KdjaxError(
      f"{loss}: {name_a} has shape {a.shape} and {name_b} has shape {b.shape}; they must be equal, "
      "with a class or feature axis (truncate padded vocabularies before the loss)"
    )


def check_same_rows(loss: str, student: Array, teacher: Array, axis: int) -> None:
  rows = [classes_last(loss, logits, axis).shape[:-1] for logits in (student, teacher)]
  if rows[0] != rows[1]:
    raise KdjaxError(
      f"{loss}: student_logits has shape {student.shape} and teacher_logits has shape"
      f" {teacher.shape}; only axis {axis}, that of the classes, may differ"
    )


def check_where(loss: str, where, shape: tuple[int, ...], name: str = "where") -> Array | None:
  if where is None:
    return None
  where = jnp.asarray(where)
  if where.dtype != jnp.bool_:
    raise KdjaxError(f"{loss}: {name} has dtype {where.dtype}; it must be bool (try `{name} > 0`)")
  try:
    return jnp.broadcast_to(where, shape)
  except ValueError:
    raise KdjaxError(
      f"{loss}: {name} has shape {where.shape}; it must broadcast to {shape}"
    ) from None


def check_labels(loss: str, labels, shape: tuple[int, ...], classes: int, where):
  """Labels that are safe to index with, and which of them are real classes.

  A row that does not count may hold any integer. A label out of range elsewhere cannot raise under
  `jit`; its loss becomes nan, so that it is noticed.
  """
  labels = jnp.asarray(labels)
  if labels.shape != shape or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise KdjaxError(
      f"{loss}: labels have shape {labels.shape} and dtype {labels.dtype}; integers of shape "
      f"{shape} are wanted, one for each row"
    )
  if where is not None:
    labels = jnp.where(where, labels, 0)
  valid = (labels >= 0) & (labels < classes)
  return jnp.where(valid, labels, 0), valid


def kl(
  log_p: Float[Array, "*batch vocab"], log_q: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch"]:
  """KL(p || q) of two normalised distributions, in nats; +inf where q misses mass of p.

  Written as sum_v p (e^d - 1 - d) with d = log q - log p. The added sum of q - p is zero; with it
  every term is non-negative and rounding errors of the two normalisers, which matter at high
  temperature, cancel to first order.
  """
  p = jnp.exp(log_p)
  inside = p > TINY
  d = jnp.where(inside, log_q, 0.0) - jnp.where(inside, log_p, 0.0)
  terms = jnp.where(inside, p * (jnp.expm1(d) - d), jnp.exp(log_q) - p)
  return jnp.sum(terms, axis=-1)


def cross_entropy_sum(
  log_p: Float[Array, "*batch vocab"], log_q: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch"]:
  """-sum_v p log q, with 0 log 0 = 0."""
  p = jnp.exp(log_p)
  return -jnp.sum(p * jnp.where(p > 0, log_q, 0.0), axis=-1)


def norm(x: Array, axis: int = -1) -> Array:
  """Euclidean length along `axis`, with gradient 0 instead of nan at 0."""
  square = jnp.sum(jnp.square(x), axis=axis)
  nonzero = square > 0
  return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def unit(x: Array) -> Array:
  """Vectors along the last axis at length 1, float32; one shorter than 1e-12 is divided by that."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
