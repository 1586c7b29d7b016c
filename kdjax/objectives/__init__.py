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
from kdjax.objectives.contrastive_representation import contrastive_representation
from kdjax.objectives.curriculum_temperature import curriculum_temperature
from kdjax.objectives.distillation_token import distillation_token
from kdjax.objectives.drive_adapter import drive_adapter, imitation
from kdjax.objectives.echoatt import echoatt
from kdjax.objectives.features import feature_kd
from kdjax.objectives.first import first
from kdjax.objectives.fitnet import fitnet
from kdjax.objectives.g2sd import g2sd, masked_reconstruction
from kdjax.objectives.gold import gold
from kdjax.objectives.held_out import base_cross_entropy
from kdjax.objectives.image_text import image_text_contrastive
from kdjax.objectives.labels_or_teacher import labels_or_teacher
from kdjax.objectives.latent import latent
from kdjax.objectives.logits import cross_entropy, hinton_kd, logit_kd
from kdjax.objectives.match_distribution import match_distribution
from kdjax.objectives.minillm import minillm
from kdjax.objectives.minilm import minilm
from kdjax.objectives.multi_granularity import multi_granularity
from kdjax.objectives.multi_level import multi_level
from kdjax.objectives.nd_loss import nd_loss, norm_direction
from kdjax.objectives.overhaul import overhaul
from kdjax.objectives.proc_kd import proc_kd
from kdjax.objectives.prompt_kd import prompt_kd
from kdjax.objectives.review import review
from kdjax.objectives.robustify import robustify
from kdjax.objectives.sampled_reverse_kl import sampled_reverse_kl
from kdjax.objectives.scale_kd import scale_kd
from kdjax.objectives.standardized import standardized
from kdjax.objectives.taid import taid
from kdjax.objectives.talking_models import talking_models
from kdjax.objectives.tgeo_kd import tgeo_kd
from kdjax.objectives.tokens import map_logits, token_level
from kdjax.objectives.trans_kd import trans_kd
from kdjax.objectives.uld import uld
from kdjax.objectives.variational_information import variational_information
from kdjax.objectives.vlm_ood import vlm_ood
from kdjax.objectives.written_kd import written_kd
from kdjax.outputs import Outputs

# What a config may name; the combinators take objectives and are called from code.
__all__ = [
  "base_cross_entropy",
  "contrastive_representation",
  "cross_entropy",
  "curriculum_temperature",
  "distillation_token",
  "drive_adapter",
  "echoatt",
  "feature_kd",
  "first",
  "fitnet",
  "g2sd",
  "gold",
  "hinton_kd",
  "image_text_contrastive",
  "imitation",
  "labels_or_teacher",
  "latent",
  "logit_kd",
  "masked_reconstruction",
  "match_distribution",
  "minillm",
  "minilm",
  "multi_granularity",
  "multi_level",
  "nd_loss",
  "norm_direction",
  "overhaul",
  "proc_kd",
  "prompt_kd",
  "review",
  "robustify",
  "sampled_reverse_kl",
  "scale_kd",
  "taid",
  "talking_models",
  "tgeo_kd",
  "trans_kd",
  "uld",
  "variational_information",
  "vlm_ood",
  "written_kd",
]
