"""Function matching: teacher and student on the same mixtures of images, no labels.

python -m launch.train --config=configs/function_matching.py --workdir=runs/matching
python -m launch.compare --config=configs/function_matching.py --seeds=3 --workdir=runs/matching_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100.

  The paper's own runs are far longer: 1,200 epochs of ImageNet with Adam, warm-up and batches of
  4,096. The temperature is to be chosen between 1 and 10.
  """
  objective = {"name": "hinton_kd", "temperature": 1.0, "kd_weight": 1.0, "ce_weight": 0.0}
  config = small_vision.distilled_by(variant, objective, "Function matching on images")
  plain = tuple(config.data.augment)
  config.data.augment = (*plain, {"name": "mixup"})
  config.baseline.data.augment = plain
  return config
