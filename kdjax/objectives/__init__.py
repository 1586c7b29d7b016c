"""Objectives: distillation methods as (init, apply) pairs, and the combinators they are made of."""

from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Taps,
  Term,
  counts,
  total,
)
from kdjax.objectives.combinators import combine, on_layers, scheduled
from kdjax.objectives.first import first
from kdjax.objectives.gold import gold
from kdjax.objectives.latent import latent
from kdjax.objectives.logits import cross_entropy, hinton_kd, logit_kd
from kdjax.objectives.match_distribution import match_distribution
from kdjax.objectives.minillm import minillm
from kdjax.objectives.minilm import minilm
from kdjax.objectives.multi_granularity import multi_granularity
from kdjax.objectives.nd_loss import nd_loss, norm_direction
from kdjax.objectives.sampled_reverse_kl import sampled_reverse_kl
from kdjax.objectives.taid import taid
from kdjax.objectives.talking_models import talking_models
from kdjax.objectives.tgeo_kd import tgeo_kd
from kdjax.objectives.tokens import map_logits, token_level
from kdjax.objectives.uld import uld
from kdjax.outputs import Outputs

# What a config may name; the combinators take objectives and are called from code.
__all__ = [
  "cross_entropy",
  "first",
  "gold",
  "hinton_kd",
  "latent",
  "logit_kd",
  "match_distribution",
  "minillm",
  "minilm",
  "multi_granularity",
  "nd_loss",
  "norm_direction",
  "sampled_reverse_kl",
  "taid",
  "talking_models",
  "tgeo_kd",
  "uld",
]
