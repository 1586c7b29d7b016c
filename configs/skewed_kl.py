"""Skewed forward KL on tokens (DistiLLM's loss), against forward KL.

python -m launch.train --config=configs/skewed_kl.py --workdir=runs/skewed_kl
python -m launch.compare --config=configs/skewed_kl.py --workdir=runs/compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: GPT-2 XL into GPT-2 on Dolly.

  The batches come from the data; DistiLLM's replayed samples of the student are not part of this.
  """
  return small_text.distilled_by(
    variant,
    "skewed_forward_kl",
    "Skewed forward KL on tokens (DistiLLM's loss), against forward KL",
    alpha=0.1,
  )
