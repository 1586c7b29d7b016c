"""A vision-language teacher's space, imitated so that unseen classes are known by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.losses._common import unit
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid
from kdjax.objectives.combinators import combine
from kdjax.objectives.held_out import among_base, base_labels


def vlm_ood(
  *,
  novel: Sequence[int] = (),
  temperature: float = 0.07,
  cls_weight: float = 1.0,
  mse_weight: float = 1.0,
  contrast_weight: float = 1.0,
  align_weight: float = 1.0,
  top: int = 256,
  filtered: bool = True,
) -> Objective:
  """Labels, the teacher's image space, and its alignment of images with texts.

  With f the embeddings of an image and w_c those of the classes' texts, all of length 1, and tau
  the temperature:
    cls: cross-entropy of f_S w / tau with the label, among the base classes;
    mse: |f_S - f_T|^2, which is 2 - 2 cos;
    contrast: each f_S finds its f_T in the batch at f_S f_T / tau, and each f_T its f_S;
    align: KL of the teacher's softmax over its `top` base classes at f_T w / tau from the student's
    over the same ones.

  Args:
    novel: the held-out classes, whose names and images training does not see; a data set with named
      classes gives them.
    temperature: tau > 0.
    cls_weight, mse_weight, contrast_weight, align_weight: of the terms; 0 leaves one out.
    top: k of align, at least 1; of fewer base classes all.
    filtered: align counts only the images whose label the teacher finds among the base classes.

  Returns:
    The objective. It reads the student's embedding, which must be of the teacher's width.

  Raises:
    KdjaxError: options out of range; when shapes are known, differing widths.

  Reference:
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability",
    ICCV 2023, https://arxiv.org/abs/2307.03135 (xuanlinli17/large_vlm_distillation_ood,
    main_experiments.py). An align term of which no image passes the filter is nan there and 0 here;
    its descriptions of classes by a language model are texts of the data set here.
  """
  if not temperature > 0:
    raise KdjaxError(f"vlm_ood: temperature = {temperature} must be positive")
  if top < 1:
    raise KdjaxError(f"vlm_ood: top = {top} must be at least 1")

  def classes_at(embedding: Array, classes: Array) -> Float[Array, "batch base"]:
    return among_base(unit(embedding) @ classes.T / temperature, novel)

  def cls(student, teacher, batch):
    classes = teacher.head.kernel.T
    labels, where = base_labels(batch, novel, len(classes))
    logits = classes_at(student.embedding, classes)
    return losses.cross_entropy(logits, labels, where=where), where

  def mse(student, teacher, batch):
    values = squared_distance(student.embedding, teacher.embedding)
    return values, valid(batch, values)

  def contrast(student, teacher, batch):
    scores = unit(student.embedding) @ unit(teacher.embedding).T / temperature
    where = valid(batch, scores[:, 0])
    return losses.paired_cross_entropy(scores, where=where), where

  def align(student, teacher, batch):
    classes = teacher.head.kernel.T
    own, told = (classes_at(side.embedding, classes) for side in (student, teacher))
    labels, where = base_labels(batch, novel, len(classes))
    where = where & (told.argmax(-1) == labels) if filtered else valid(batch, labels)
    return top_classes_kl(own, told, top=top, where=where), where

  both = Taps(frozenset({"embedding"}), frozenset({"embedding", "head"}))
  terms = {
    "cls": (cls_weight, cls),
    "mse": (mse_weight, mse),
    "contrast": (contrast_weight, contrast),
    "align": (align_weight, align),
  }
  kept = {
    name: (weight, _term(function, both)) for name, (weight, function) in terms.items() if weight
  }
  if not kept:
    raise KdjaxError("vlm_ood: all weights are 0; set one of cls_weight, mse_weight, ...")
  return combine(kept)


def squared_distance(
  student: Float[Array, "batch width"], teacher: Float[Array, "batch width"]
) -> Float[Array, "batch"]:
  """|f_S - f_T|^2 of the two embeddings at length 1."""
  return jnp.square(unit(student) - jax.lax.stop_gradient(unit(teacher))).sum(-1)


def top_classes_kl(
  student_logits: Float[Array, "batch classes"],
  teacher_logits: Float[Array, "batch classes"],
  *,
  top: int,
  where: Bool[Array, "batch"],
) -> Float[Array, "batch"]:
  """KL(teacher || student) over the teacher's `top` classes, among which both are normalised."""
  top = min(top, teacher_logits.shape[-1])
  told, places = jax.lax.top_k(jax.lax.stop_gradient(teacher_logits), top)
  own = jnp.take_along_axis(student_logits, places, axis=-1)
  return losses.forward_kl(own, told, where=where)


def _term(function: Callable[..., tuple[Array, Array]], taps: Taps) -> Objective:
  def apply(variables, student, teacher, batch, *, step, rng):
    if student.embedding.shape != teacher.embedding.shape:
      raise KdjaxError(
        f"vlm_ood: the student's embedding has shape {student.embedding.shape}, the teacher's"
        f" {teacher.embedding.shape}; make the student end in the teacher's width"
      )
    return ObjectiveResult({"": Term(*function(student, teacher, batch))})

  return Objective(apply=apply, taps=taps)
