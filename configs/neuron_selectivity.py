"""Neuron selectivity transfer (NST): what channels respond to.

python -m launch.train --config=configs/neuron_selectivity.py --workdir=runs/nst
python -m launch.compare --config=configs/neuron_selectivity.py --seeds=3 --workdir=runs/nst_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {
    "name": "feature_kd",
    "loss": "neuron_selectivity",
    "feature_weight": 50.0,
    "pairs": small_vision.STAGES,
  }
  return small_vision.distilled_by(variant, objective, "Neuron selectivity transfer on images")
