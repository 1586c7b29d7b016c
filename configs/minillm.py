"""MiniLLM: policy gradient on the student's own texts, against KD on the data.

python -m launch.train --config=configs/minillm.py --workdir=runs/minillm
python -m launch.compare --config=configs/minillm.py --workdir=runs/minillm_compare --seeds=3
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: GPT-2 XL into GPT-2 on Dolly (minillm/scripts/gpt2).

  The supervised part of either is on the same text, where the paper takes OpenWebText. The paper's
  student is fine-tuned first; the small one is a language model too, and keeps a supervised part.
  """
  config = small_text.distilled_by(
    variant, "forward_kl", "MiniLLM: on-policy reverse KL beside KD, against KD on the data"
  )
  config.baseline = {
    "program": {"name": "distill"},
    "objective": {
      "name": "logit_kd",
      "loss": "forward_kl",
      "kd_weight": 0.5,
      "ce_weight": 0.5,
      "chunk_size": 32,
    },
  }
  config.objective = {"name": "minillm", "chunk_size": 32}
  config.program = {
    "name": "on_policy",
    "prompt_length": 256 if variant == "paper" else 16,
    "fraction": 1.0,
    "teacher_share": 0.2,
    "keep_data": True,
  }
  if variant == "paper":
    config.optimizer.learning_rate = 5e-6
    config.optimizer.warmup_steps = 100
    config.total_steps = 5000
  config.compare.names = {"baseline": "student_data", "method": "student_minillm"}
  config.compare.vectorize = False
  return config
