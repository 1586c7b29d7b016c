"""Adaptive KL on tokens, against forward KL.

python -m launch.train --config=configs/adaptive_kl.py --workdir=runs/adaptive_kl
python -m launch.compare --config=configs/adaptive_kl.py --workdir=runs/compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: GPT-2 XL into GPT-2 on Dolly.

  Half of the teacher's mass is the head, as in the paper.
  """
  return small_text.distilled_by(
    variant, "adaptive_kl", "Adaptive KL on tokens, against forward KL"
  )
