"""Several teachers of one vocabulary: their logits as one teacher's, or a loss against each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["combine_teachers", "over_teachers"]

RULES = ("probabilities", "logits")


def combine_teachers(
  teacher_logits: Float[Array, "teacher *batch vocab"],
  *,
  rule: str = "probabilities",
  weights: Sequence[float] | None = None,
  temperature: float | Float[Array, ""] = 1.0,
  axis: int = -1,
) -> Float[Array, "*batch vocab"]:
  r"""One teacher's logits for several: the weighted mean of their probabilities or of their logits.

  - "probabilities": a mixture, softmax(out / T) = :math:`\sum_k w_k` softmax(z_k / T). A class that
    one teacher finds likely stays likely; all teachers count alike, however sure they are.
  - "logits": the geometric mean, normalised. A teacher with larger logits leads, and one that
    excludes a class excludes it for all.

  A `forward_kl` against the mixture has the gradient of the weighted mean of those against each
  teacher (`over_teachers`).

  Args:
    teacher_logits: [K, ..., V], unnormalised, any float dtype; no gradient flows here.
    rule: one of the two above. Static.
    weights: K positive numbers, divided by their sum; None weighs all alike.
    temperature: > 0, that of the loss to come, at which probabilities are mixed; the mean of logits
      does not depend on it. May be traced.
    axis: the class axis of one teacher's logits [..., V], static.

  Returns:
    float32[..., V], to be divided by the temperature again in the loss.

  Raises:
    KdjaxError: an unknown rule, a temperature <= 0, or weights that do not fit.

  Example:
    >>> sure, unsure = jnp.log(jnp.array([0.98, 0.02])), jnp.log(jnp.array([0.4, 0.6]))
    >>> both = jnp.stack([sure, unsure])
    >>> for rule in ("probabilities", "logits"):
    ...   print(f"{jax.nn.softmax(combine_teachers(both, rule=rule))[0]:.2f}")
    0.69
    0.85

  Reference:
    Avram et al., "Distilling the Knowledge of Romanian BERTs Using Multiple Teachers", LREC 2022,
    https://arxiv.org/abs/2112.12650, does not say how its teachers are combined; the mixture is
    Hinton's ensemble, https://arxiv.org/abs/1503.02531.
  """
  name = "combine_teachers"
  if rule not in RULES:
    raise KdjaxError(f"{name}: rule is {rule!r}; it must be one of {', '.join(RULES)}")
  _common.check_temperature(name, temperature)
  teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits)).astype(jnp.float32)
  if teacher.ndim < 2:
    raise KdjaxError(f"{name}: teacher_logits have shape {teacher.shape}; [K, ..., V] is wanted")
  shares = _shares(name, weights, teacher.shape[0])
  classes = axis if axis < 0 else axis + 1
  share = jnp.asarray(shares, jnp.float32).reshape((-1,) + (1,) * (teacher.ndim - 1))
  if rule == "logits":
    return jnp.sum(share * teacher, axis=0)
  log_probs = jax.nn.log_softmax(_common.divide(teacher, temperature), axis=classes)
  mixed = jax.nn.logsumexp(log_probs, axis=0, b=jnp.broadcast_to(share, log_probs.shape))
  return jnp.asarray(temperature, jnp.float32) * mixed


def over_teachers(
  loss_fn: Callable[..., Array], *, weights: Sequence[float] | None = None
) -> Callable[..., Array]:
  """A loss against one teacher as the weighted mean of those against several.

  Args:
    loss_fn: `loss_fn(student_logits, teacher_logits, ...) -> [...]`.
    weights: K positive numbers, divided by their sum; None weighs all alike.

  Returns:
    The same function for teachers' logits [K, ..., V]; all other arguments are passed on.

  Raises:
    KdjaxError: when called, weights that do not fit.

  Example:
    >>> def mean_gap(student, teacher):
    ...   return jnp.abs(student - teacher).mean(-1)
    >>> teachers = jnp.array([[1.0, 1.0], [3.0, 3.0]])
    >>> print(over_teachers(mean_gap, weights=(3, 1))(jnp.zeros(2), teachers))
    1.5
  """

  def loss(student_logits, teacher_logits, *arguments, **options):
    shares = _shares("over_teachers", weights, len(teacher_logits))
    parts = [
      share * loss_fn(student_logits, own, *arguments, **options)
      for share, own in zip(shares, teacher_logits, strict=True)
    ]
    return sum(parts[1:], parts[0])

  return loss


def _shares(name: str, weights: Sequence[float] | None, teachers: int) -> list[float]:
  weights = [1.0] * teachers if weights is None else [float(weight) for weight in weights]
  if not weights or len(weights) != teachers or not min(weights) > 0:
    raise KdjaxError(
      f"{name}: weights = {weights} must be {teachers} positive numbers, one per teacher"
    )
  return [weight / sum(weights) for weight in weights]
