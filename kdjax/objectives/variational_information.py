"""VID: the student's map predicts the teacher's, with a learned variance for each channel."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.features import (
  STAGES,
  Pairs,
  beside_labels,
  counted,
  features_of,
  over_stages,
)
from kdjax.objectives.networks import apply_mlp, init_mlp

EPS = 1e-5  # added to the variances


def variational_information(
  *,
  pairs: Pairs = STAGES,
  initial_variance: float = 5.0,
  feature_weight: float = 1.0,
  ce_weight: float = 1.0,
) -> Objective:
  """Minus the log-likelihood of the teacher's maps under a normal distribution around r(student).

  r is three 1x1 convolutions without biases and ReLU between them; the variance of a channel is
  softplus(s) + 1e-5. Both learn with the student. (megvii-research/mdistiller keeps s out of its
  optimiser, so that there the variances never change; HobbitLong/RepDistiller trains them.)

  Args:
    pairs: (student stage, teacher stage), by name or index; a larger map is averaged down.
    initial_variance: > 1e-5.
    feature_weight: of the sum over the pairs.
    ce_weight: of the labels; 0 leaves them out.

  Returns:
    An objective that learns r and s for each pair.

  Raises:
    KdjaxError: a variance out of range; when shapes are known, a stage that does not exist.

  Reference:
    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
    https://arxiv.org/abs/1904.05835 (HobbitLong/RepDistiller, distiller_zoo/VID.py).
  """
  if not initial_variance > EPS:
    raise KdjaxError(
      f"variational_information: initial_variance = {initial_variance} must be above {EPS}"
    )
  start = math.log(math.expm1(initial_variance - EPS))

  def init(rng, student, teacher, batch):
    own, told = features_of(student, "features"), features_of(teacher, "features")
    channels = told.shape[-1]
    mean = init_mlp(rng, (own.shape[-1], channels, channels, channels), bias=False)
    return ObjectiveVars({"mean": mean, "variance": jnp.full(channels, start, jnp.float32)})

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = (features_of(side, "features").astype(jnp.float32) for side in (student, teacher))
    own, told = losses.same_size(own, told)
    where = counted(batch, own)
    mean = apply_mlp(variables.params["mean"], own, activation=jax.nn.relu)
    variance = jax.nn.softplus(variables.params["variance"]) + EPS
    values = losses.variational_information(mean, told, variance, where=where)
    metrics = {"variance": (variance.mean(), jnp.float32(1))}
    return ObjectiveResult({"": Term(values, where)}, metrics)

  taps = frozenset({"features"})
  predicted = Objective(apply=apply, taps=Taps(taps, taps), init=init)
  return beside_labels(over_stages(predicted, pairs), feature_weight, ce_weight)
