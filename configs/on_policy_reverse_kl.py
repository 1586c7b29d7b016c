"""On-policy distillation by the tokens that the student draws, against exact reverse KL on them.

python -m launch.train --config=configs/on_policy_reverse_kl.py --workdir=runs/on_policy
python -m launch.compare --config=configs/on_policy_reverse_kl.py --workdir=runs/c --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: the recipe of tinker-cookbook, with models of one's own."""
  config = small_text.distilled_by(
    variant, "reverse_kl", "Reverse KL from the drawn tokens alone, against all classes"
  )
  config.baseline = {"objective": {"name": "logit_kd", "loss": "reverse_kl", "chunk_size": 32}}
  config.objective = {"name": "sampled_reverse_kl", "chunk_size": 32}
  config.program = {
    "name": "on_policy",
    "prompt_length": 256 if variant == "paper" else 16,
    "fraction": 1.0,
  }
  if variant == "paper":
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
  config.compare.names = {"baseline": "student_exact", "method": "student_sampled"}
  config.compare.vectorize = False
  return config
