"""Logit standardisation: Hinton's distillation on z-scores of both sides' logits.

python -m launch.train --config=configs/logit_standardization.py --workdir=runs/standardized
python -m launch.compare --config=configs/logit_standardization.py --seeds=3 --workdir=runs/std_3

The baseline is the same distillation on the logits as they are, at its own weights and temperature.
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  kd = {"name": "hinton_kd", "temperature": 2.0, "kd_weight": 9.0, "ce_weight": 0.0}
  objective = {
    "name": "combine",
    "terms": {
      "ce": {"weight": 0.1, "objective": {"name": "cross_entropy"}},
      "kd": {"weight": 1.0, "objective": {"name": "standardized", "objective": kd}},
    },
  }
  config = small_vision.distilled_by(variant, objective, "Logit standardisation on images")
  plain = {"name": "hinton_kd", "temperature": 4.0, "kd_weight": 0.9, "ce_weight": 0.1}
  config.baseline = {"objective": plain}
  config.compare.names = {"baseline": "student_kd", "method": "student_standardized"}
  return config
