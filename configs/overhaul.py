"""A comprehensive overhaul of feature distillation (OFD).

python -m launch.train --config=configs/overhaul.py --workdir=runs/ofd
python -m launch.compare --config=configs/overhaul.py --seeds=3 --workdir=runs/ofd_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {"name": "overhaul"}
  return small_vision.distilled_by(variant, objective, "Overhaul of feature distillation on images")
