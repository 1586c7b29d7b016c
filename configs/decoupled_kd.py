"""Decoupled KD on tokens, against forward KL.

python -m launch.train --config=configs/decoupled_kd.py --workdir=runs/decoupled_kd
python -m launch.compare --config=configs/decoupled_kd.py --workdir=runs/compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: GPT-2 XL into GPT-2 on Dolly.

  The weights are those of the language-model form in SakanaAI/TAID; the paper's own are for images.
  """
  return small_text.distilled_by(
    variant,
    "decoupled_kd",
    "Decoupled KD on tokens, against forward KL",
    alpha=1.0,
    beta=0.5,
    temperature=1.0,
  )
