"""DistiLLM: skewed KL with the adaptive off-policy schedule, against the data alone.

python -m launch.train --config=configs/distillm.py --workdir=runs/distillm
python -m launch.compare --config=configs/distillm.py --workdir=runs/distillm_compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: GPT-2 XL into GPT-2 on Dolly (scripts/gpt2/distillm)."""
  config = small_text.distilled_by(
    variant,
    "skewed_reverse_kl",
    "DistiLLM: adaptive off-policy schedule, against the data alone",
    alpha=0.1,
  )
  config.baseline = {"program": {"name": "distill"}}
  paper = variant == "paper"
  config.program = {
    "name": "adaptive_replay",
    "prompt_length": 256 if paper else 16,
    "validate_every": 357 if paper else 20,
    "capacity": 1000 if paper else 64,
    # The loss of one small batch goes up and down by some tenths of a nat.
    "margin": 0.1 if paper else 0.0,
  }
  config.compare.names = {"baseline": "student_data", "method": "student_distillm"}
  config.compare.vectorize = False
  return config
