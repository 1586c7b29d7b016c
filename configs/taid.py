"""TAID against forward KL at a constant target: digits, a tenth of the labels; or tokens of text.

python -m launch.train --config=configs/taid.py --workdir=runs/taid
python -m launch.compare --config=configs/taid.py --seeds=3 --workdir=runs/taid_compare
python -m launch.compare --config=configs/taid.py:tokens --seeds=3 --workdir=runs/taid_tokens
"""

import ml_collections

from configs import digits_kd, small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: t_start and schedule of the paper's recipe.

  The paper distils language models; in these two the same objective teaches a classifier. `tokens`:
  two small language models, some two minutes; there t follows the line too (see `taid`).
  """
  if variant == "tokens":
    return on_tokens()
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


def on_tokens() -> ml_collections.ConfigDict:
  """A small language model and its teacher, with no labels, as in the paper."""
  config = small_text.get_config()
  config.objective = {
    "name": "taid",
    "total_steps": config.get_ref("total_steps"),
    "t_start": 0.4,
    "chunk_size": 32,
  }
  config.baseline = {"objective": {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 32}}
  config.compare.names = {"baseline": "student_forward_kl", "method": "student_taid"}
  config.compare.title = "TAID against forward KL on tokens"
  return config
