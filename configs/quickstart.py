"""The first run: a teacher, a student alone, the same student distilled, compared on real digits.

make run
python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`digits_kd` with the student trained alone beside it; two CPU cores, about a minute."""
  config = digits_kd.get_config(variant)
  config.compare.train_baseline = True
  return config
