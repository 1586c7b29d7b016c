"""Forward KL on a window of the teacher's ranking, whose ends may be learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.losses import _common
from kdjax.losses.signals import Dense, HiddenHead

__all__ = ["clipped_forward_kl"]


def clipped_forward_kl(
  student_logits: Float[Array, "*batch vocab"],
  teacher_logits: Float[Array, "*batch vocab"] | Dense | HiddenHead,
  labels: Int[Array, "*batch"],
  *,
  lower: float | Float[Array, "*batch"] = 0.0,
  upper: float | Float[Array, "*batch"] = 0.95,
  softness: float = 0.02,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(teacher || student) on the teacher's dense region; all other mass is one more class.

  With the teacher's classes sorted from the likeliest on, c is the mass before each of them. A
  class belongs to the window by M = sigmoid((c - lower) / softness) sigmoid((upper - c) /
  softness); the label and the teacher's likeliest class belong to it wholly. Both sides become
  (M p, sum of (1 - M) p), so this is a divergence, at most `forward_kl`, whatever the window: no
  choice of its ends lets the student miss the likeliest class for nothing. With lower 0, upper 1
  and softness to 0 it is `forward_kl`; a narrower window never costs more.

  That the ends are quantiles of the teacher's mass and that the target class is kept is published.
  The smooth edge and the last class, without which an empty window would cost nothing, are
  reconstructed: the paper has no public code.

  Args:
    student_logits: [..., V], unnormalised, any float dtype.
    teacher_logits: [..., V], same shape and class order; no gradient flows here.
    labels: integers [...] in 0..V-1; where `where` is False any integer is allowed. A label out of
      range elsewhere gives nan, since a traced value cannot raise.
    lower: in [0, 1], a number or broadcastable to [...]; teacher's mass above the window. May be
      traced and learned.
    upper: in [0, 1], likewise; teacher's mass down to the window's other end.
    softness: > 0, a Python number: the width of the edges, in mass.
    temperature: > 0, dimensionless; divides both sides. May be traced.
    axis: the class axis, static.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if the shapes differ, an option is out of range, or the teacher is a sparse signal.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> value = clipped_forward_kl(
    ...   jnp.log(student), jnp.log(teacher), jnp.array(0), upper=0.5, softness=1e-3
    ... )
    >>> print(f"{value:.4f}")  # only the label is left: KL of (0.7, 0.3) and (0.1, 0.9)
    1.0326

  Reference:
    Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", 2024,
    https://arxiv.org/abs/2407.10068
  """
  loss = "clipped_forward_kl"
  if not softness > 0:
    raise KdjaxError(f"{loss}: softness is {softness}; it must be > 0")
  student, teacher, where = _common.align(
    loss, student_logits, teacher_logits, temperature=temperature, axis=axis, where=where
  )
  shape, classes = student.shape[:-1], student.shape[-1]
  labels, valid = _common.check_labels(loss, labels, shape, classes, where)
  lower, upper = (
    _end(loss, name, end, shape) for name, end in (("lower", lower), ("upper", upper))
  )
  log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
  before = _mass_before(log_p)
  kept = jax.nn.one_hot(labels, classes, dtype=jnp.bool_)
  kept = kept | jax.nn.one_hot(jnp.argmax(log_p, -1), classes, dtype=jnp.bool_)
  inside, outside = _membership((before - lower) / softness, (upper - before) / softness, kept)
  value = _common.kl(_split(log_p, inside, outside), _split(log_q, inside, outside))
  return _common.masked(jnp.where(valid, value, jnp.nan), where)


def _end(loss: str, name: str, end, shape: tuple[int, ...]) -> Array:
  """An end of the window as [..., 1]."""
  if jnp.ndim(end) == 0:
    _common.check_unit(loss, name, end)
  try:
    return jnp.expand_dims(jnp.broadcast_to(jnp.asarray(end, jnp.float32), shape), -1)
  except ValueError:
    raise KdjaxError(
      f"{loss}: {name} has shape {jnp.shape(end)}; it must broadcast to {shape}"
    ) from None


def _mass_before(log_p: Array) -> Array:
  """The mass of the classes that are likelier than each one; ties in the order of the classes."""
  order = jnp.argsort(-log_p, axis=-1)
  p = jnp.take_along_axis(jnp.exp(log_p), order, axis=-1)
  # Not `cumsum(p) - p`: that rounds differently from class to class and may fall.
  before = jnp.concatenate([jnp.zeros_like(p[..., :1]), jnp.cumsum(p, axis=-1)[..., :-1]], axis=-1)
  return jnp.take_along_axis(before, jnp.argsort(order, axis=-1), axis=-1)


def _membership(x: Array, y: Array, kept: Array) -> tuple[Array, Array]:
  """Logs of M = sigmoid(x) sigmoid(y) and of 1 - M; M is 1 where a class is kept."""
  inside = jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(y)
  # (1 - M) / M = e^-x + e^-y + e^(-x - y): one minus M itself would lose all digits.
  outside = inside + jnp.logaddexp(jnp.logaddexp(-x, -y), -x - y)
  return jnp.where(kept, 0.0, inside), jnp.where(kept, -jnp.inf, outside)


def _split(log_p: Array, inside: Array, outside: Array) -> Array:
  """Log-probabilities of each class in the window, and of all that is outside, [..., V + 1]."""
  rest = outside + log_p
  empty = jnp.max(rest, axis=-1, keepdims=True) == -jnp.inf
  total = jax.nn.logsumexp(jnp.where(empty, 0.0, rest), axis=-1, keepdims=True)
  return jnp.concatenate([inside + log_p, jnp.where(empty, -jnp.inf, total)], axis=-1)
