"""Generalised Jensen-Shannon divergence on tokens (GKD's loss), against forward KL.

python -m launch.train --config=configs/generalized_jsd.py --workdir=runs/generalized_jsd
python -m launch.compare --config=configs/generalized_jsd.py --workdir=runs/compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: GPT-2 XL into GPT-2 on Dolly.

  The batches come from the data; GKD's samples of the student are not part of this.
  """
  return small_text.distilled_by(
    variant,
    "generalized_jsd",
    "Generalised Jensen-Shannon divergence on tokens (GKD's loss), against forward KL",
    beta=0.5,
  )
