"""FitNets: a hint at the second stage.

python -m launch.train --config=configs/fitnet.py --workdir=runs/fitnet
python -m launch.compare --config=configs/fitnet.py --seeds=3 --workdir=runs/fitnet_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {"name": "fitnet"}
  return small_vision.distilled_by(variant, objective, "FitNets on images")
