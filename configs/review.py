"""Knowledge review (ReviewKD).

python -m launch.train --config=configs/review.py --workdir=runs/review
python -m launch.compare --config=configs/review.py --seeds=3 --workdir=runs/review_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits on two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100."""
  warmup = 20 * small_vision.EPOCH if variant == "paper" else 25
  objective = {"name": "review", "warmup_steps": warmup}
  return small_vision.distilled_by(variant, objective, "Knowledge review on images")
