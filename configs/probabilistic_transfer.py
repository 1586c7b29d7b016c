"""Probabilistic knowledge transfer (PKT): neighbours within the batch.

python -m launch.train --config=configs/probabilistic_transfer.py --workdir=runs/pkt
python -m launch.compare --config=configs/probabilistic_transfer.py --seeds=3 --workdir=runs/pkt_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {
    "name": "feature_kd",
    "loss": "probabilistic_knowledge_transfer",
    "feature_weight": 30000.0,
  }
  return small_vision.distilled_by(variant, objective, "Probabilistic knowledge transfer on images")
