"""Multi-level logit distillation (MLLD), of two views.

python -m launch.train --config=configs/multi_level.py --workdir=runs/mlld
python -m launch.compare --config=configs/multi_level.py --seeds=3 --workdir=runs/mlld_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  side = 4 if variant == "paper" else 1
  weak = ({"name": "shift", "pixels": side},) + (({"name": "flip"},) if variant == "paper" else ())
  strong = (*weak, {"name": "cutout", "size": 2 * side})  # the recipe has RandAugment(2, 10)
  config = small_vision.distilled_by(
    variant, {"name": "multi_level"}, "Multi-level logit distillation on images"
  )
  config.data.augment = ({"name": "two_views", "strong": strong}, *weak)
  config.baseline.data.augment = weak
  if variant == "paper":
    config.optimizer.learning_rate = 0.025
  return config
