"""Contrastive representation distillation (CRD), with memory banks.

python -m launch.train --config=configs/contrastive_representation.py --workdir=runs/crd
python -m launch.compare --config=configs/contrastive_representation.py --seeds=3 --workdir=crd_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  objective = {"name": "contrastive_representation"}
  if variant == "small":  # as many negatives for each of the 1,200 images as for 50,000
    objective |= {"negatives": 400}
  title = "Contrastive representation distillation on images"
  return small_vision.distilled_by(variant, objective, title)
