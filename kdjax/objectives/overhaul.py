"""Overhaul of feature distillation: maps before the activation, matched where it lets them pass."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.features import (
  STAGES,
  Pairs,
  beside_labels,
  counted,
  features_of,
  over_stages,
)
from kdjax.objectives.networks import apply_conv, batch_norm, init_conv, init_norm

FIELD = "preactivations"


class Negatives(NamedTuple):
  """Sum and number of a teacher's negative values, for each channel."""

  sum: Float[Array, "channel"]
  count: Float[Array, "channel"]


def overhaul(
  *, pairs: Pairs = STAGES, feature_weight: float = 1e-3, ce_weight: float = 1.0
) -> Objective:
  """Partial L2 distance of norm(1x1 convolution(student)) from the teacher, before the activation.

  The stage before the last weighs a half, the one before that a quarter. The margin of a channel
  is the mean of the teacher's negative values over one pass of the training data, as the paper
  defines it. The official code puts the normalisation before the activation in its place (see
  `kdjax.losses.negative_margin`), which in a residual network is that of the branch alone.

  Args:
    pairs: (student stage, teacher stage), by name or index, from the first to the last; a larger
      teacher's map is averaged down.
    feature_weight: of the sum; 1e-4 in the recipe for ImageNet.
    ce_weight: of the labels; 0 leaves them out.

  Returns:
    An objective that learns the projectors and carries the margins.

  Raises:
    KdjaxError: when shapes are known, a stage that does not exist or a smaller teacher's map.

  Reference:
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
    https://arxiv.org/abs/1904.01866 (megvii-research/mdistiller, distillers/OFD.py).
  """

  def init(rng, student, teacher, batch):
    width, channels = (features_of(side, FIELD).shape[-1] for side in (student, teacher))
    projector = {"conv": init_conv(rng, (1, 1), width, channels), "norm": init_norm(channels)}
    return ObjectiveVars(projector, Negatives(jnp.zeros(channels), jnp.zeros(channels)))

  def prepare(variables, teacher, batch):
    told, seen = features_of(teacher, FIELD).astype(jnp.float32), variables.state
    where = counted(batch, told).reshape(-1, 1, 1, 1)
    negative = (told < 0) & jnp.broadcast_to(where, told.shape)
    added = jnp.sum(told, axis=(0, 1, 2), where=negative)
    number = jnp.sum(negative, axis=(0, 1, 2), dtype=jnp.float32)
    return variables._replace(state=Negatives(seen.sum + added, seen.count + number))

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = (features_of(side, FIELD) for side in (student, teacher))
    where = counted(batch, own)
    told = losses.average_pool(told.astype(jnp.float32), own.shape[1:3])
    own = batch_norm(variables.params["norm"], apply_conv(variables.params["conv"], own), where)
    margin = variables.state.sum / jnp.maximum(variables.state.count, 1)
    values = losses.partial_l2(own, told, margin, where=where)
    return ObjectiveResult({"": Term(values, where)})

  taps = frozenset({FIELD})
  stage = Objective(apply=apply, taps=Taps(taps, taps), init=init, prepare=prepare)
  weights = [0.5 ** (len(pairs) - 1 - i) for i in range(len(pairs))]
  return beside_labels(over_stages(stage, pairs, weights), feature_weight, ce_weight)
