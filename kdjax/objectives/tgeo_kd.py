"""TGeo-KD: how much to trust the teacher on each sample, from the geometry of its predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.objectives import class_means
from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Taps,
  Term,
  masked_sum,
)
from kdjax.objectives.networks import apply_mlp, init_mlp

LOGITS = frozenset({"logits"})


def tgeo_kd(*, temperature: float = 4.0) -> Objective:
  """alpha_i T^2 KL_i + (1 - alpha_i) CE_i, with alpha_i predicted per sample by a small network.

  The network is the objective's `params`. Trained with the student it would merely shrink the
  larger loss: use it in the program `bilevel`, which trains it on the validation loss.

  Args:
    temperature: > 0; of the distillation term (the paper gives none; 4 is ours, as on CIFAR).

  Returns:
    An objective whose state is the teacher's mean prediction per class, from one pass over the
    training data. The network's layers (32, 16, leaky ReLU) follow the one public
    re-implementation, since the official code could not be had.

  Reference:
    Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge
    Distillation", ICLR 2024, https://arxiv.org/abs/2312.15112.
  """

  def init(rng, student, teacher, batch):
    classes = teacher.logits.shape[-1]
    return ObjectiveVars(
      params=init_mlp(rng, (9 * classes, 32, 16, 1)),
      state=class_means.empty(classes, classes),
    )

  def prepare(variables, teacher, batch):
    probs = jax.nn.softmax(teacher.logits.astype(jnp.float32))
    return variables._replace(state=class_means.gather(variables.state, batch, probs))

  def apply(variables, student, teacher, batch, *, step, rng):
    labels = batch["label"]
    where = class_means.labelled(batch)
    table = class_means.means(variables.state)
    features = geometry(student.logits, teacher.logits, labels, table)
    alpha = trust(variables.params, features)
    kd = losses.hinton_kd(student.logits, teacher.logits, temperature=temperature, where=where)
    ce = losses.cross_entropy(student.logits, labels, where=where)
    wrong = where & (teacher.logits.argmax(-1) != labels)
    return ObjectiveResult(
      {"kd": Term(alpha * kd, where), "ce": Term((1 - alpha) * ce, where)},
      {"alpha": masked_sum(alpha, where), "alpha_where_teacher_wrong": masked_sum(alpha, wrong)},
    )

  return Objective(apply=apply, taps=Taps(LOGITS, LOGITS), init=init, prepare=prepare)


def geometry(
  student_logits: Float[Array, "batch classes"],
  teacher_logits: Float[Array, "batch classes"],
  labels,
  table: Float[Array, "classes classes"],
) -> Float[Array, "batch features"]:
  """Both triangles of each sample: vertices S, T, G, class mean M, and their squared edges.

  Args:
    student_logits: [B, C]; no gradient flows here.
    teacher_logits: [B, C].
    labels: int [B].
    table: [C, C], row y the teacher's mean probabilities on class y.

  Returns:
    [B, 9 C]: S, T, G, M, (M-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (M-G)^2, all elementwise.
  """
  s = jax.nn.softmax(jax.lax.stop_gradient(student_logits).astype(jnp.float32))
  t = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
  g = jax.nn.one_hot(labels, s.shape[-1])
  m = table[labels]
  edges = [(m, s), (g, s), (t, s), (t, g), (m, g)]
  return jnp.concatenate([s, t, g, m, *(jnp.square(a - b) for a, b in edges)], axis=-1)


def trust(params, features: Float[Array, "batch features"]) -> Float[Array, "batch"]:
  """alpha in (0, 1): 1 follows the teacher, 0 the label."""
  return jax.nn.sigmoid(apply_mlp(params, features, activation=jax.nn.leaky_relu)[:, 0])
