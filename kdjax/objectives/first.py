"""FIRST: the teacher's few likeliest classes, made as sure as they are right."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.evaluation.calibration import GRID
from kdjax.losses import TopK
from kdjax.objectives.base import Objective, ObjectiveVars, valid
from kdjax.objectives.chunks import sum_chunks
from kdjax.objectives.logits import with_labels
from kdjax.outputs import Outputs

# Nearest to 1 first: of equal errors the first is taken.
TEMPERATURES = np.array(sorted(GRID, key=lambda t: abs(np.log(t))), np.float32)
CHUNK = 32  # positions of which the teacher's logits exist at a time, while it is calibrated


class FirstState(NamedTuple):
  gaps: Float[Array, "grid bins"]  # sum of right - confidence, by temperature and bin of confidence


def first(
  *,
  k: int = 5,
  temperature: float | None = None,
  tail: str = "bucket",
  bins: int = 10,
  legacy: bool = False,
  kd_weight: float = 1.0,
  ce_weight: float = 0.0,
  chunk_size: int | None = None,
) -> Objective:
  """KL(teacher || student) over the teacher's k likeliest classes at a calibrated temperature.

  The teacher is live, or a cache of `--kind=top_k`. Its temperature is the one that
  `kdjax.evaluation.top_k_temperature` chooses, the least expected calibration error of the
  likeliest class, on the validation rows: the student learns from none of them.

  Args:
    k: classes kept of a live teacher; a cache has its own number.
    temperature: of the kept classes, > 0; 1 leaves them as they are. None calibrates it before the
      first step, with a teacher that can be asked about the validation rows.
    tail: what becomes of the other classes, see `kdjax.losses.sparse_forward_kl`: "bucket" in the
      paper's example run, "renormalise" without its other token.
    bins: equal bins of confidence.
    legacy: see `kdjax.losses.recalibrate_top_k`.
    kd_weight: weight of this loss.
    ce_weight: of the cross-entropy with labels.
    chunk_size: see `token_level`.

  Returns:
    An objective; with `temperature=None` its state holds what the validation rows said.

  Raises:
    KdjaxError: a value out of range.

  Reference:
    Shum et al., "FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy
    Distillation", EMNLP 2024, https://arxiv.org/abs/2408.12168 (SHUMKASHUN/FIRST, distill.py).
  """
  for name, value, least in (("k", k, 2), ("bins", bins, 1)):
    if value < least:
      raise KdjaxError(f"first: {name} = {value} must be at least {least}")
  if temperature is not None and not temperature > 0:
    raise KdjaxError(f"first: temperature = {temperature} must be above 0")

  def kept(teacher: Array | TopK) -> TopK:
    if isinstance(teacher, losses.Sampled):
      raise KdjaxError("first: the teacher's cache holds draws; make one with --kind=top_k --k=5")
    return teacher if isinstance(teacher, TopK) else losses.top_k_signal(teacher, k=k)

  def at(chosen: float | Array) -> Objective:
    def loss_fn(student_logits, signal, *, where):
      signal = losses.recalibrate_top_k(kept(signal), temperature=chosen, legacy=legacy)
      return losses.sparse_forward_kl(student_logits, signal, tail=tail, where=where)

    return with_labels(loss_fn, kd_weight, ce_weight, chunk_size, own_signals=True)

  fixed = at(1.0 if temperature is None else temperature)
  if temperature is not None:
    return fixed

  def init(rng, student, teacher, batch):
    own = fixed.init(rng, student, teacher, batch)
    gaps = jnp.zeros((len(TEMPERATURES), bins), jnp.float32)
    return ObjectiveVars(own.params, {"first": FirstState(gaps), "loss": own.state})

  def apply(variables, student, teacher, batch, *, step, rng):
    chosen = calibrated(variables.state["first"])
    own = ObjectiveVars(variables.params, variables.state["loss"])
    out = at(chosen).apply(own, student, teacher, batch, step=step, rng=rng)
    return out._replace(metrics=out.metrics | {"temperature": (chosen, jnp.float32(1))})

  def prepare(variables, teacher: Outputs, batch):
    label = batch["label"]
    where = valid(batch, label) & (label >= 0)

    def gaps(logits, label, where):
      return _gaps(kept(logits), label, where, bins=bins, legacy=legacy)

    if teacher.logits is not None:
      found = gaps(teacher.logits, label, where)
    else:
      found = sum_chunks(
        lambda part: gaps(teacher.head.logits(part[0]), *part[1:]),
        (teacher.hidden, label, where),
        label.shape,
        CHUNK,
      )
    before = variables.state["first"].gaps
    state = variables.state | {"first": FirstState(before + found)}
    return variables._replace(state=state)

  return fixed._replace(
    init=init, apply=apply, update=_kept, prepare=prepare, prepare_on="validation"
  )


def calibrated(state: FirstState) -> Float[Array, ""]:
  """The temperature with the least expected calibration error of the rows seen so far."""
  return jnp.asarray(TEMPERATURES)[jnp.argmin(jnp.abs(state.gaps).sum(-1))]


def _gaps(signal: TopK, label: Array, where: Array, *, bins: int, legacy: bool) -> Array:
  """Sum of right - confidence over positions, [grid, bins]."""
  right = jnp.take_along_axis(
    signal.ids, jnp.argmax(signal.log_probs, axis=-1, keepdims=True), axis=-1
  )[..., 0]
  right = (right == label).astype(jnp.float32)

  def one(temperature):
    tempered = losses.recalibrate_top_k(signal, temperature=temperature, legacy=legacy)
    confidence = jnp.max(jax.nn.softmax(tempered.log_probs), axis=-1)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    gap = jnp.where(where, right - confidence, 0.0)
    return (gap[..., None] * jax.nn.one_hot(place, bins)).reshape(-1, bins).sum(0)

  return jax.lax.map(one, jnp.asarray(TEMPERATURES))


def _kept(state, stats, *, step):
  return state
