"""Similarity-preserving distillation (SP): products of the last maps within the batch.

python -m launch.train --config=configs/similarity_preserving.py --workdir=runs/sp
python -m launch.compare --config=configs/similarity_preserving.py --seeds=3 --workdir=runs/sp_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {
    "name": "feature_kd",
    "loss": "similarity_preserving",
    "feature_weight": 3000.0,
    "pairs": (("stage3", "stage3"),),
  }
  return small_vision.distilled_by(
    variant, objective, "Similarity-preserving distillation on images"
  )
