"""Variational information distillation (VID).

python -m launch.train --config=configs/variational_information.py --workdir=runs/vid
python -m launch.compare --config=configs/variational_information.py --seeds=3 --workdir=runs/vid_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {"name": "variational_information"}
  return small_vision.distilled_by(
    variant, objective, "Variational information distillation on images"
  )
