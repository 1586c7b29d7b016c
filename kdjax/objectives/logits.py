"""Objectives on logits: labels, Hinton's distillation, and any loss of `kdjax.losses` by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from jaxtyping import Array

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars
from kdjax.objectives.combinators import combine
from kdjax.objectives.tokens import logit_taps, map_logits, token_level
from kdjax.resolve import hint, resolve


def cross_entropy(*, chunk_size: int | None = None) -> Objective:
  """Cross-entropy with `batch["label"]`, averaged over the labelled (non-negative) examples.

  Args:
    chunk_size: see `token_level`.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    term, _ = map_logits(
      losses.cross_entropy, student, None, batch, chunk_size=chunk_size, labels=True
    )
    return ObjectiveResult({"": term})

  return Objective(apply=apply, taps=logit_taps(chunk_size, teacher=False))


def hinton_kd(
  *,
  temperature: float = 4.0,
  kd_weight: float = 0.9,
  ce_weight: float = 0.1,
  chunk_size: int | None = None,
) -> Objective:
  """Hinton's distillation: `ce_weight` CE + `kd_weight` T^2 KL(teacher || student) at T.

  Args:
    temperature: > 0; divides both sides' logits.
    kd_weight: weight of the teacher's term; the defaults are mdistiller's for CIFAR.
    ce_weight: weight of the labels' term; 0 leaves labels out.
    chunk_size: see `token_level`.

  Reference:
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531.
  """
  kd = functools.partial(losses.hinton_kd, temperature=temperature)
  return with_labels(kd, kd_weight, ce_weight, chunk_size)


def logit_kd(
  *,
  loss: str,
  kd_weight: float = 1.0,
  ce_weight: float = 0.0,
  chunk_size: int | None = None,
  **arguments,
) -> Objective:
  """Any distillation loss of `kdjax.losses` by name, with the labels' cross-entropy beside it.

  Args:
    loss: such as "reverse_kl"; one that takes labels (as "decoupled_kd") gets them. Of a teacher
      that hands over a sparse signal, "sparse_cross_entropy" or "sparse_forward_kl".
    kd_weight: weight of that loss.
    ce_weight: weight of the cross-entropy with labels; 0 leaves labels out.
    chunk_size: see `token_level`.
    **arguments: passed on to the loss.
  """
  fit = [name for name in losses.__all__ if _reads_logits(getattr(losses, name))]
  if loss not in fit:
    raise KdjaxError(
      f"config.objective.loss = {loss!r} is no loss on student and teacher logits{hint(loss, fit)}"
    )
  function = resolve(losses, loss, arguments, field="config.objective.loss", given=("where",))
  takes_labels = "labels" in inspect.signature(function).parameters
  return with_labels(function, kd_weight, ce_weight, chunk_size, takes_labels=takes_labels)


def _reads_logits(function) -> bool:
  names = list(inspect.signature(function).parameters)[:2] if inspect.isfunction(function) else []
  return names in (["student_logits", "teacher_logits"], ["student_logits", "signal"])


def _for_signals(loss_fn: Callable[..., Array]) -> Callable[..., Array]:
  """The loss, which tells a user who gives it a sparse signal where it reads logits."""
  if "signal" in inspect.signature(loss_fn).parameters:
    return loss_fn

  def checked(student_logits, teacher, *labels, where):
    if isinstance(teacher, losses.Sampled | losses.TopK):
      sampled = isinstance(teacher, losses.Sampled)
      fit = "sparse_cross_entropy" if sampled else "sparse_forward_kl or sparse_cross_entropy"
      raise KdjaxError(
        f"the teacher hands over a sparse signal ({teacher.support}, at temperature"
        f" {teacher.temperature}) and the loss reads logits; use logit_kd with the loss {fit}"
      )
    return loss_fn(student_logits, teacher, *labels, where=where)

  return checked


def with_labels(
  loss_fn: Callable[..., Array],
  kd_weight: float,
  ce_weight: float,
  chunk_size: int | None = None,
  *,
  takes_labels: bool = False,
  own_signals: bool = False,
) -> Objective:
  """`kd_weight` loss + `ce_weight` cross-entropy with labels; the second is left out at weight 0.

  Of sequences [B, T], a position without a label counts for neither: it is not to be learnt. Both
  terms then come from the same logits, in one pass. Of single predictions [B] each term has the
  examples that it can use: the teacher speaks where labels are unknown.

  Args:
    loss_fn: see `token_level`.
    kd_weight: its weight.
    ce_weight: of the labels.
    chunk_size: see `token_level`.
    takes_labels: whether `loss_fn` reads labels.
    own_signals: whether `loss_fn` reads both logits and sparse signals.
  """
  loss_fn = loss_fn if own_signals else _for_signals(loss_fn)
  kd = token_level(loss_fn, chunk_size=chunk_size, labels=takes_labels)
  if not ce_weight:
    return combine({"kd": (kd_weight, kd)})
  apart = combine({"kd": (kd_weight, kd), "ce": (ce_weight, cross_entropy(chunk_size=chunk_size))})

  def both(student_logits, teacher, labels, *, where):
    told = (teacher, labels) if takes_labels else (teacher,)
    kd = loss_fn(student_logits, *told, where=where)
    ce = losses.cross_entropy(student_logits, labels, where=where)
    return kd_weight * kd + ce_weight * ce, {"kd": kd, "ce": ce}

  together = token_level(both, chunk_size=chunk_size, labels=True)

  def apply(variables, student, teacher, batch, *, step, rng):
    if batch["label"].ndim > 1:
      return together.apply(ObjectiveVars(), student, teacher, batch, step=step, rng=rng)
    return apart.apply(variables, student, teacher, batch, step=step, rng=rng)

  def update(state, stats, *, step):
    return state

  return apart._replace(apply=apply, update=update)
