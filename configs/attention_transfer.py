"""Attention transfer (AT): where stages are active.

python -m launch.train --config=configs/attention_transfer.py --workdir=runs/at
python -m launch.compare --config=configs/attention_transfer.py --seeds=3 --workdir=runs/at_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {
    "name": "feature_kd",
    "loss": "attention_transfer",
    "feature_weight": 1000.0,
    "pairs": small_vision.STAGES,
  }
  return small_vision.distilled_by(variant, objective, "Attention transfer on images")
