"""`digits_kd` from a teacher that was asked once: its draws are read with the batch.

  python -m launch.train --config=configs/digits_kd.py --workdir=runs/digits_kd
  python -m launch.cache_teacher --config=configs/digits_kd.py --out=runs/digits_signals \
    --config.teacher.checkpoint=runs/digits_kd/teacher
  python -m launch.train --config=configs/digits_cached.py --workdir=runs/digits_cached

The cache holds 50 draws from the teacher's distribution for each image. With
`--config.teacher.checkpoint=runs/digits_kd/teacher` the evaluation asks the live teacher too.
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some twenty seconds beside the teacher's training."""
  config = digits_kd.get_config(variant)
  config.teacher.kind = "cached"
  config.teacher.cache = "runs/digits_signals"
  config.objective = {
    "name": "logit_kd",
    "loss": "sparse_cross_entropy",
    "kd_weight": 0.9,
    "ce_weight": 0.1,
  }
  config.compare.title = "Distillation from a cache on digits, a tenth of the labels"
  return config
