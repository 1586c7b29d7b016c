"""Losses against teacher signals that hold only some of the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common
from kdjax.losses.signals import Sampled, TopK

__all__ = ["sparse_cross_entropy", "sparse_forward_kl"]

TAILS = ("bucket", "spread", "renormalise", "renormalise_teacher", "drop")

# One minus a float32 sum cannot be told from rounding below this.
_ROUNDING = 1e-6
# Stands for the log of an empty tail, where a teacher's tail of rounding size may meet it.
_EMPTY_TAIL = -69.0


def sparse_forward_kl(
  student_logits: Float[Array, "*batch vocab"],
  signal: TopK,
  *,
  tail: str | None = None,
  temperature: float = 1.0,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""KL(teacher || student) from the teacher's top-k classes. `tail` says what becomes of the rest.

  - "bucket": the rest is one more class, on both sides. A divergence, at most the full KL and equal
    to it from K = V - 1 on. The choice when in doubt.
  - "spread": the teacher's rest is shared evenly by the other V - K classes, as if all were equally
    likely. A divergence; the student learns to flatten its own tail. Equal to the full KL where the
    teacher's tail is flat.
  - "renormalise": both sides are divided by their mass on the K classes. The student's mass outside
    is then free; with K = 1 the loss is always 0.
  - "renormalise_teacher": only the teacher is. The student learns to leave nothing outside, and
    becomes over-confident.
  - "drop": the sum over the K classes as it is. Not a divergence: it can be negative.

  Args:
    student_logits: [..., V], unnormalised, any float dtype, classes last.
    signal: the teacher's `TopK` [..., K] for the same positions; no gradient flows here. `Sampled`
      is refused, as the teacher's entropy cannot be told from it: `sparse_cross_entropy` has the
      gradient of this loss.
    tail: one of the five above, without a default: they are different losses. Static.
    temperature: a Python number, the one recorded in the signal; divides the student's logits.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if `tail` is missing, the temperature is not the recorded one, or shapes or
      vocabularies differ.

  Example:
    >>> teacher, student = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    >>> signal = top_k_signal(jnp.log(teacher), k=1)
    >>> print(f"{sparse_forward_kl(jnp.log(student), signal, tail='bucket'):.4f}")
    1.0326

  Reference:
    What a cut-off tail does to the student: Anshumann et al., "Sparse Logit Sampling: Accelerating
    Knowledge Distillation in LLMs", ACL 2025, https://arxiv.org/abs/2503.16870.
    In use: "bucket" and "renormalise" in TRL, "bucket" and "renormalise_teacher" in DistillKit,
    "spread" in TinyViT (Wu et al., ECCV 2022, https://arxiv.org/abs/2207.10666; microsoft/Cream),
    where rounding may leave the rest below 0, which is 0 here.
  """
  if isinstance(signal, Sampled):
    raise KdjaxError(
      "sparse_forward_kl: a Sampled signal does not hold the teacher's entropy; use "
      "sparse_cross_entropy, which has the same gradient"
    )
  log_p, log_q, where = _supported(
    "sparse_forward_kl", student_logits, signal, tail, temperature, where
  )
  # Not `kl`, which needs normalised sides: "renormalise_teacher" and "drop" are not.
  cross, own = _common.cross_entropy_sum(log_p, log_q), _common.cross_entropy_sum(log_p, log_p)
  return _common.masked(cross - own, where)


def sparse_cross_entropy(
  student_logits: Float[Array, "*batch vocab"],
  signal: TopK | Sampled,
  *,
  tail: str | None = None,
  temperature: float = 1.0,
  where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  r"""Cross-entropy of the student against a sparse teacher signal.

  For `Sampled`: the weighted sum of -log q over the draws, with the student normalised over every
  class. When the draws came from the teacher itself (`proposal_power=1`), value and gradient are
  unbiased estimates of `soft_cross_entropy`. For `TopK`: `sparse_forward_kl` plus the entropy of
  its teacher side.

  Args:
    student_logits: [..., V], unnormalised, any float dtype, classes last.
    signal: the teacher's `TopK` [..., K] or `Sampled` [..., N]; no gradient flows here.
    tail: for TopK one of those of `sparse_forward_kl`, without a default; None for Sampled. Static.
    temperature: a Python number, the one recorded in the signal; divides the student's logits.
    where: bool, broadcastable to [...]; False positions return 0.

  Returns:
    float32[...], nats for each position.

  Raises:
    KdjaxError: if `tail` is missing or not wanted, the temperature is not the recorded one, or
      shapes or vocabularies differ.

  Example:
    >>> signal = Sampled(jnp.array([2, 2, 0]), jnp.full(3, 1 / 3), vocab=4, temperature=1.0)
    >>> print(f"{sparse_cross_entropy(jnp.zeros(4), signal):.4f}")  # log 4
    1.3863

  Reference:
    Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
    ACL 2025, https://arxiv.org/abs/2503.16870
  """
  log_p, log_q, where = _supported(
    "sparse_cross_entropy", student_logits, signal, tail, temperature, where
  )
  return _common.masked(_common.cross_entropy_sum(log_p, log_q), where)


def _supported(loss: str, student_logits, signal, tail, temperature, where):
  """Both sides' log-probabilities on the signal's support, with a bucket if asked for."""
  if not isinstance(signal, TopK | Sampled):
    dense = "forward_kl" if loss == "sparse_forward_kl" else "soft_cross_entropy"
    raise KdjaxError(
      f"{loss}: the signal is a {type(signal).__name__}; TopK or Sampled is wanted "
      f"(kdjax.losses.{dense} takes the teacher's logits)"
    )
  if isinstance(signal, TopK) and tail not in TAILS:
    raise KdjaxError(f"{loss}: tail is {tail!r}; a TopK signal needs one of {', '.join(TAILS)}")
  if isinstance(signal, Sampled) and tail is not None:
    raise KdjaxError(f"{loss}: tail is {tail!r}; a Sampled signal has no tail, leave it out")
  _common.check_temperature(loss, temperature)
  if isinstance(temperature, jax.Array) or temperature != signal.temperature:
    raise KdjaxError(
      f"{loss}: temperature is {temperature}, but the signal was made at {signal.temperature}; "
      f"pass temperature={signal.temperature}, or make the signal again"
    )
  student = jnp.asarray(student_logits)
  stored = signal.log_probs if isinstance(signal, TopK) else signal.weights
  if student.shape[:-1] != signal.ids.shape[:-1] or stored.shape != signal.ids.shape:
    raise KdjaxError(
      f"{loss}: student_logits has shape {student.shape} and the signal's arrays have shapes "
      f"{signal.ids.shape} and {stored.shape}; all but the last axis must be equal"
    )
  if student.shape[-1] != signal.vocab:
    raise KdjaxError(
      f"{loss}: student_logits has shape {student.shape}, {student.shape[-1]} classes, but the "
      f"signal's vocab is {signal.vocab}; truncate padded vocabularies before the loss"
    )
  where = _common.check_where(loss, where, student.shape[:-1])
  student = _common.divide(_common.clean(student, where), temperature)
  stored, ids = _common.clean(jax.lax.stop_gradient(stored), where), signal.ids
  if where is not None:
    ids = jnp.where(jnp.broadcast_to(jnp.expand_dims(where, -1), ids.shape), ids, 0)
  log_q_full = jax.nn.log_softmax(student)
  log_q = jnp.take_along_axis(log_q_full, ids, axis=-1)
  if isinstance(signal, Sampled):
    return jnp.log(stored), log_q, where

  used = stored > -jnp.inf
  log_p, log_q = stored, jnp.where(used, log_q, -jnp.inf)
  if tail == "bucket":
    outside = _outside(log_q_full, ids, used)
    log_p = jnp.concatenate([log_p, _teacher_tail(log_p, signal.vocab)], axis=-1)
    log_q = jnp.concatenate([log_q, outside], axis=-1)
  elif tail == "spread":
    log_p, log_q = _spread(log_p, ids, used, signal.vocab), log_q_full
  elif tail == "renormalise":
    log_p, log_q = jax.nn.log_softmax(log_p), jax.nn.log_softmax(log_q)
  elif tail == "renormalise_teacher":
    log_p = jax.nn.log_softmax(log_p)
  return log_p, log_q, where


def _teacher_tail(log_p: Array, vocab: int) -> Array:
  """log(1 - sum p), [..., 1]; -inf where nothing is left but rounding."""
  if log_p.shape[-1] >= vocab:
    return jnp.full((*log_p.shape[:-1], 1), -jnp.inf, jnp.float32)
  log_sum = jax.nn.logsumexp(log_p, axis=-1, keepdims=True)
  real = log_sum < -_ROUNDING
  return jnp.where(real, jnp.log(-jnp.expm1(jnp.where(real, log_sum, -1.0))), -jnp.inf)


def _spread(log_p: Array, ids: Array, used: Array, vocab: int) -> Array:
  """The teacher's log-probabilities over all classes, its tail shared evenly, [..., V]."""
  others = jnp.maximum(vocab - used.sum(axis=-1, keepdims=True), 1)
  each = _teacher_tail(log_p, vocab) - jnp.log(others.astype(jnp.float32))
  dense = jnp.broadcast_to(each, (*each.shape[:-1], vocab))
  # A slot that is not used points past the end, where writing does nothing.
  ids = jnp.where(used, ids, vocab)
  return jnp.put_along_axis(dense, ids, log_p, axis=-1, inplace=False, mode="drop")


def _outside(log_q: Array, ids: Array, used: Array) -> Array:
  """Log of the student's mass outside the support, [..., 1].

  Summed over the classes themselves: one minus the mass inside would lose all digits, and the
  gradient, for a student that is sure of the support.
  """
  vocab = log_q.shape[-1]
  # A slot that is not used points past the end, where writing does nothing.
  ids = jnp.where(used, ids, vocab)
  rest = jnp.put_along_axis(log_q, ids, -jnp.inf, axis=-1, inplace=False, mode="drop")
  empty = jnp.max(rest, axis=-1, keepdims=True) == -jnp.inf
  total = jax.nn.logsumexp(jnp.where(empty, 0.0, rest), axis=-1, keepdims=True)
  return jnp.where(empty, _EMPTY_TAIL, total)
