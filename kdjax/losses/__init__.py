"""Losses: pure functions of arrays that return one float32 value per example.

Every public name is importable from here. To add a loss, write it in the file of its kind and name
it in that file's `__all__`; a new file needs one line in each of the two lists below. A loss whose
first argument is `student_logits` is then tested against the common contract by itself.
"""
# ruff: noqa: F403, F405

from kdjax.losses.adaptive import *
from kdjax.losses.attention import *
from kdjax.losses.beta import *
from kdjax.losses.clipping import *
from kdjax.losses.contrastive import *
from kdjax.losses.correlation import *
from kdjax.losses.decoupled import *
from kdjax.losses.directions import *
from kdjax.losses.entropy import *
from kdjax.losses.features import *
from kdjax.losses.hints import *
from kdjax.losses.kl import *
from kdjax.losses.levels import *
from kdjax.losses.margins import *
from kdjax.losses.masks import *
from kdjax.losses.mixtures import *
from kdjax.losses.recalibration import *
from kdjax.losses.relations import *
from kdjax.losses.resize import *
from kdjax.losses.rewards import *
from kdjax.losses.selectivity import *
from kdjax.losses.several import *
from kdjax.losses.signals import *
from kdjax.losses.smooth import *
from kdjax.losses.spans import *
from kdjax.losses.sparse import *
from kdjax.losses.spatial import *
from kdjax.losses.standardize import *
from kdjax.losses.variation import *
from kdjax.losses.vocabularies import *

# Importing from a file also binds its name here.
__all__ = [
  name
  for module in (
    adaptive,
    attention,
    beta,
    clipping,
    contrastive,
    correlation,
    decoupled,
    directions,
    entropy,
    features,
    hints,
    kl,
    levels,
    margins,
    masks,
    mixtures,
    recalibration,
    relations,
    resize,
    rewards,
    selectivity,
    several,
    signals,
    smooth,
    spans,
    sparse,
    spatial,
    standardize,
    variation,
    vocabularies,
  )
  for name in module.__all__
]
