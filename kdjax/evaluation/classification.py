"""Metrics of a classifier, and of a student beside its teacher, as (sum, count) pairs.

Pairs of any batches add up (`merge`), on any number of devices and hosts, and are divided once
(`finalize`): no figure depends on how the data were cut. Everything but `finalize` may be jitted
and sharded. Computed in float32 whatever comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.evaluation.held_out import harmonic_mean
from kdjax.evaluation.loyalty import probability_loyalty
from kdjax.evaluation.similarity import PARTS, joined_cka
from kdjax.losses.kl import forward_kl

BINS = 15  # the calibration error depends on it, so it is no option
MATRIX_CLASSES = 100  # up to here a classes x classes table is cheap enough for every batch
Pair = tuple[Any, Any]


def classification(
  logits: Float[Array, "*batch classes"],
  labels: Int[Array, "*batch"],
  where: Bool[Array, "*batch"] | None = None,
) -> dict[str, Pair]:
  """How good and how well calibrated a classifier is.

  Args:
    logits: [..., K], unnormalised, any float dtype.
    labels: [...], 0 .. K-1. A negative label is unknown and not counted; one of K or more makes
      nll and brier nan, since under `jit` it cannot raise.
    where: [...], True = counted; None counts all.

  Returns:
    Name to (sum, count): `accuracy`; `nll` in nats; `brier`, the squared distance to the one-hot
    label summed over classes, in [0, 2]; `reliability/accuracy` and `reliability/confidence`, a
    pair of vectors over 15 equal bins of confidence, from which `finalize` makes `ece` and `mce`.

  Raises:
    KdjaxError: shapes that do not fit.

  Example:
    >>> pairs = classification(jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1]))
    >>> finalize(pairs)["accuracy"]
    0.5

  Reference:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599
  """
  if labels.shape != logits.shape[:-1]:
    raise KdjaxError(
      f"classification: labels have shape {labels.shape}, logits {logits.shape}; one label per row"
      " is wanted"
    )
  where = _rows("classification", logits, where) & (labels >= 0)
  classes = logits.shape[-1]
  log_probs = jax.nn.log_softmax(_clean(logits, where))
  probs = jnp.exp(log_probs)
  in_range = labels < classes
  own = jnp.where(where & in_range, labels, 0)
  nll = -jnp.take_along_axis(log_probs, own[..., None], axis=-1)[..., 0]
  brier = jnp.sum(jnp.square(probs - jax.nn.one_hot(own, classes)), axis=-1)
  correct = (jnp.argmax(log_probs, axis=-1) == labels).astype(jnp.float32)
  confidence = jnp.max(probs, axis=-1)
  place = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
  bins = jnp.where(where[..., None], jax.nn.one_hot(place, BINS), 0.0)

  def per_bin(values: Array) -> Pair:
    rows = tuple(range(values.ndim))
    return jnp.sum(bins * values[..., None], axis=rows), jnp.sum(bins, axis=rows)

  return {
    "accuracy": _pair(correct, where),
    "nll": _pair(jnp.where(in_range, nll, jnp.nan), where),
    "brier": _pair(jnp.where(in_range, brier, jnp.nan), where),
    "reliability/accuracy": per_bin(correct),
    "reliability/confidence": per_bin(confidence),
  }


def top_k_accuracy(
  logits: Float[Array, "*batch classes"],
  labels: Int[Array, "*batch"],
  where: Bool[Array, "*batch"] | None = None,
  *,
  k: int = 5,
) -> dict[str, Pair]:
  """How often the label is among the k likeliest classes.

  Args:
    logits: [..., K], unnormalised, any float dtype.
    labels: [...], 0 .. K-1; negative where unknown, which does not count.
    where: [...], True = counted; None counts all.
    k: at least 1. A label that ties with the k-th counts as found.

  Returns:
    (sum, count) of `top<k>_accuracy`.

  Raises:
    KdjaxError: shapes that do not fit, or k below 1.

  Example:
    >>> pairs = top_k_accuracy(jnp.array([[3.0, 2.0, 1.0]] * 2), jnp.array([1, 2]), k=2)
    >>> finalize(pairs)
    {'top2_accuracy': 0.5}
  """
  if labels.shape != logits.shape[:-1] or k < 1:
    raise KdjaxError(
      f"top_k_accuracy: labels have shape {labels.shape}, logits {logits.shape} and k is {k}; one"
      " label per row and k >= 1 are wanted"
    )
  where = _rows("top_k_accuracy", logits, where) & (labels >= 0)
  logits = _clean(logits, where)
  in_range = labels < logits.shape[-1]
  own = jnp.take_along_axis(logits, jnp.where(where & in_range, labels, 0)[..., None], axis=-1)
  better = (logits > own).sum(-1)
  return {f"top{k}_accuracy": _pair(((better < k) & in_range).astype(jnp.float32), where)}


def agreement(
  student_logits: Float[Array, "*batch classes"],
  teacher_logits: Float[Array, "*batch classes"],
  where: Bool[Array, "*batch"] | None = None,
) -> dict[str, Pair]:
  """How faithful a student is to its teacher, whatever the labels say.

  Args:
    student_logits: [..., K], unnormalised, any float dtype.
    teacher_logits: [..., K], same classes in the same order.
    where: [...], True = counted; None counts all.

  Returns:
    Name to (sum, count): `agreement`, the same class on top (also called label loyalty);
    `forward_kl`, KL(teacher || student) in nats; `probability_loyalty`, see the function of that
    name, in [0, 1]; up to 100 classes also `agreement/matrix` [K, K], the number of rows by
    (teacher's class, student's class), whose shares sum to 1 after `finalize`.

  Raises:
    KdjaxError: shapes that do not fit.

  Reference:
    Xu et al., "Beyond Preserved Accuracy: Evaluating Loyalty and Robustness of BERT Compression",
    EMNLP 2021, https://arxiv.org/abs/2109.03228
  """
  where = _rows("agreement", student_logits, where)
  if student_logits.shape != teacher_logits.shape:
    raise KdjaxError(
      f"agreement: student_logits have shape {student_logits.shape}, teacher_logits"
      f" {teacher_logits.shape}; they must be equal"
    )
  classes = student_logits.shape[-1]
  student, teacher = _clean(student_logits, where), _clean(teacher_logits, where)
  own, told = jnp.argmax(student, axis=-1), jnp.argmax(teacher, axis=-1)
  pairs = {
    "agreement": _pair((own == told).astype(jnp.float32), where),
    "forward_kl": _pair(forward_kl(student, teacher), where),
    "probability_loyalty": _pair(probability_loyalty(student, teacher), where),
  }
  if classes <= MATRIX_CLASSES:
    counted = jnp.where(where[..., None], jax.nn.one_hot(told, classes), 0.0)
    rows = tuple(range(told.ndim))
    matrix = jnp.tensordot(counted, jax.nn.one_hot(own, classes), axes=(rows, rows))
    pairs["agreement/matrix"] = (matrix, jnp.sum(where, dtype=jnp.float32))
  return pairs


def merge(a: Mapping[str, Pair], b: Mapping[str, Pair]) -> dict[str, Pair]:
  """Adds two dicts of pairs; a name that only one of them has is taken over."""
  both = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a.keys() & b.keys()}
  return {**a, **b, **both}


def finalize(pairs: Mapping[str, Pair]) -> dict[str, Any]:
  """Sums to means: the one division.

  Args:
    pairs: name to (sum, count), summed over everything. Names may have prefixes, as "teacher/nll".

  Returns:
    Name to float, or to a float64 NumPy array for vectors; 0 where nothing was counted. For each
    reliability diagram also `reliability/count`, the expected calibration error `ece` (mean over
    rows of |accuracy - confidence| of their bin) and the largest bin's, `mce`; beside
    `base_accuracy` and `novel_accuracy` their `harmonic_mean`; in place of the parts of `batch_cka`
    the `cka` that they make; beside the `iou` of each class their mean over the classes that occur,
    `mean_iou`.
  """
  values = {name: _divide(*pair) for name, pair in pairs.items()}
  for name in values:
    if "perplexity" in name.split("/"):  # gathered as nll: means must be taken before exp
      values[name] = float(np.exp(min(values[name], 700.0)))
  for name in pairs:
    prefix, found, rest = name.rpartition("novel_accuracy")
    if found and not rest and f"{prefix}base_accuracy" in values:
      values[f"{prefix}harmonic_mean"] = harmonic_mean(
        values[f"{prefix}base_accuracy"], values[name]
      )
    prefix, found, rest = name.rpartition("iou")
    if found and not rest and np.ndim(values[name]) == 1:
      present = np.asarray(pairs[name][1]) > 0
      values[f"{prefix}mean_iou"] = float(np.mean(values[name][present])) if present.any() else 0.0
    prefix, found, rest = name.rpartition(PARTS[0])
    if found and not rest:
      values[f"{prefix}cka"] = joined_cka({part: values.pop(f"{prefix}{part}") for part in PARTS})
    prefix, found, rest = name.rpartition("reliability/accuracy")
    if found and not rest and f"{prefix}reliability/confidence" in values:
      count = np.asarray(pairs[name][1], np.float64)
      gap = np.abs(values[name] - values[f"{prefix}reliability/confidence"])
      values[f"{prefix}reliability/count"] = count
      values[f"{prefix}ece"] = _divide(np.sum(gap * count), np.sum(count))
      values[f"{prefix}mce"] = float(np.max(np.where(count > 0, gap, 0.0)))
  return values


def _divide(num: Any, den: Any) -> Any:
  num, den = np.asarray(num, np.float64), np.asarray(den, np.float64)
  mean = np.where(den > 0, num / np.where(den > 0, den, 1.0), 0.0)
  return float(mean) if mean.ndim == 0 else mean


def _rows(name: str, logits: Array, where: Array | None) -> Array:
  shape = logits.shape[:-1]
  if where is None:
    return jnp.ones(shape, bool)
  if where.shape != shape or where.dtype != jnp.bool_:
    raise KdjaxError(
      f"{name}: where has shape {where.shape} and dtype {where.dtype}; bool of shape {shape} is"
      " wanted"
    )
  return where


def _clean(logits: Array, where: Array) -> Array:
  # Rows that do not count may hold anything, also nan.
  return jnp.where(where[..., None], logits.astype(jnp.float32), 0.0)


def _pair(values: Array, where: Array) -> Pair:
  return jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(where, dtype=jnp.float32)
