"""TAID against forward KL at a constant target: digits, a tenth of the labels.

python -m launch.train --config=configs/taid.py --workdir=runs/taid
python -m launch.compare --config=configs/taid.py --seeds=3 --workdir=runs/taid_compare
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: t_start and schedule of the paper's recipe.

  The paper distils language models; here the same objective teaches a classifier.
  """
  config = digits_kd.get_config(variant)
  config.objective = {
    "name": "taid",
    "total_steps": config.get_ref("total_steps"),
    "t_start": 0.4,
    "ce_weight": 0.1,
  }
  config.baseline = {
    "objective": {"name": "logit_kd", "loss": "forward_kl", "kd_weight": 0.9, "ce_weight": 0.1}
  }
  config.compare.names = {"baseline": "student_forward_kl", "method": "student_taid"}
  config.compare.title = "TAID against forward KL on digits"
  if variant == "paper":
    config.optimizer.learning_rate = 1e-4
    config.objective.ce_weight = 0.0
    config.baseline.objective.ce_weight = 0.0
  return config
