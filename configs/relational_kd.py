"""Relational knowledge distillation (RKD): distances and angles within the batch.

python -m launch.train --config=configs/relational_kd.py --workdir=runs/rkd
python -m launch.compare --config=configs/relational_kd.py --seeds=3 --workdir=runs/rkd_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  relation = {"name": "feature_kd", "ce_weight": 0.0}
  terms = {
    "ce": {"weight": 1.0, "objective": {"name": "cross_entropy"}},
    "distance": {"weight": 25.0, "objective": relation | {"loss": "relational_distance"}},
    "angle": {"weight": 50.0, "objective": relation | {"loss": "relational_angle"}},
  }
  objective = {"name": "combine", "terms": terms}
  return small_vision.distilled_by(variant, objective, "Relational distillation on images")
