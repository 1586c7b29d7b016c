"""KD++: features drawn in the direction of the teacher's class mean, with a large norm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.objectives import class_means
from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Taps,
  Term,
)
from kdjax.objectives.combinators import combine, scheduled
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.networks import apply_mlp, init_mlp, normalize
from kdjax.objectives.tokens import token_level


def nd_loss(
  *,
  kd_weight: float = 1.0,
  nd_weight: float = 2.0,
  ce_weight: float = 1.0,
  temperature: float = 4.0,
  warmup_steps: int = 0,
  dropout: float = 0.5,
) -> Objective:
  """Labels + Hinton's distillation + the norm-and-direction loss on pooled features ("KD++").

  Args:
    kd_weight: alpha; the defaults of both are those of ResNet56 to ResNet20 on CIFAR-100.
    nd_weight: beta.
    ce_weight: weight of the labels.
    temperature: of the distillation term.
    warmup_steps: the distillation term's weight rises from 0 over these steps (20 epochs in the
      official recipe); 0 starts at full weight.
    dropout: rate of the projector, which exists only where the widths differ.

  Returns:
    An objective with the teacher's class means as state, filled by one pass over the training data.

  Reference:
    Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    2023, https://arxiv.org/abs/2305.17007 (WangYZ1608/Knowledge-Distillation-via-ND,
    CIFAR/utils.py, CIFAR/train_cifar_kd.py).
  """
  kd = token_level(functools.partial(losses.hinton_kd, temperature=temperature))
  if warmup_steps:
    kd = scheduled(kd, optax.linear_schedule(0.0, 1.0, warmup_steps))
  return combine(
    {
      "ce": (ce_weight, cross_entropy()),
      "kd": (kd_weight, kd),
      "nd": (nd_weight, norm_direction(dropout=dropout)),
    }
  )


def norm_direction(*, dropout: float = 0.5) -> Objective:
  """1 - (f_S . e_y) / max(|f_S|, |f_T|), with e_y the direction of the teacher's mean of class y.

  Where the widths differ, f_S goes through batch normalisation, dropout and a linear layer, which
  serve this term only. Examples without a label are not counted.
  """

  def init(rng, student, teacher, batch):
    width, classes = teacher.embedding.shape[-1], teacher.logits.shape[-1]
    projector = ()
    if student.embedding.shape[-1] != width:
      projector = init_mlp(rng, (student.embedding.shape[-1], width))
    return ObjectiveVars(projector, class_means.empty(classes, width))

  def prepare(variables, teacher, batch):
    return variables._replace(state=class_means.gather(variables.state, batch, teacher.embedding))

  def project(params, features, rng):
    # Batch statistics suffice: the projector never runs outside training.
    features = normalize(features.astype(jnp.float32), axis=0)
    keep = jax.random.bernoulli(rng, 1 - dropout, features.shape)
    return apply_mlp(params, jnp.where(keep, features / (1 - dropout), jnp.float32(0)))

  def apply(variables, student, teacher, batch, *, step, rng):
    features = student.embedding
    if variables.params != ():
      features = project(variables.params, features, rng)
    where = class_means.labelled(batch)
    means = class_means.means(variables.state)
    values = losses.norm_direction(features, teacher.embedding, means, batch["label"], where=where)
    norm = jnp.linalg.norm(features.astype(jnp.float32), axis=-1)
    count = where.sum(dtype=jnp.float32)
    return ObjectiveResult(
      {"": Term(values, where)},
      {"feature_norm": (jnp.where(where, norm, jnp.float32(0)).sum(), count)},
    )

  return Objective(
    apply=apply,
    taps=Taps(frozenset({"embedding"}), frozenset({"embedding", "logits"})),
    init=init,
    prepare=prepare,
  )
