"""Total variation on tokens, against forward KL.

python -m launch.train --config=configs/total_variation.py --workdir=runs/total_variation
python -m launch.compare --config=configs/total_variation.py --workdir=runs/compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: GPT-2 XL into GPT-2 on Dolly.

  Its gradient is nearly 0 where the two sides have nothing in common.
  """
  return small_text.distilled_by(
    variant, "total_variation", "Total variation on tokens, against forward KL"
  )
