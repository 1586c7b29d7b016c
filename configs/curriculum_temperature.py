"""Curriculum temperature (CTKD): a temperature that learns to be hard.

python -m launch.train --config=configs/curriculum_temperature.py --workdir=runs/ctkd
python -m launch.compare --config=configs/curriculum_temperature.py --seeds=3 --workdir=runs/ctkd_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  ramp = 10 * small_vision.EPOCH if variant == "paper" else 100
  objective = {"name": "curriculum_temperature", "ramp_steps": ramp}
  return small_vision.distilled_by(variant, objective, "Curriculum temperature on images")
