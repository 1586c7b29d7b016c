"""GKD: half of the steps on texts that the student writes, against the data alone.

python -m launch.train --config=configs/gkd.py --workdir=runs/gkd
python -m launch.compare --config=configs/gkd.py --workdir=runs/gkd_compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: GPT-2 XL into GPT-2 on Dolly, as DistiLLM runs GKD."""
  config = small_text.distilled_by(
    variant,
    "generalized_jsd",
    "GKD: on-policy in half of the steps, against the data alone",
    beta=0.5,
  )
  config.baseline = {"program": {"name": "distill"}}
  config.program = {
    "name": "on_policy",
    "prompt_length": 16 if variant == "small" else 256,
    "fraction": 0.5,
  }
  config.compare.names = {"baseline": "student_data", "method": "student_gkd"}
  config.compare.vectorize = False
  return config
