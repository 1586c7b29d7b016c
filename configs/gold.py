"""As configs/uld.py, but compared where the tokens of both sides spell the same bytes (GOLD).

python -m launch.train   --config=configs/gold.py --workdir=runs/gold
python -m launch.compare --config=configs/gold.py --workdir=runs/gold_compare --seeds=3
"""

import ml_collections

from configs import uld


def get_config() -> ml_collections.ConfigDict:
  """The student has labels too, with the weight that ULD gives them; the baseline is ULD."""
  config = uld.get_config()
  config.baseline = {"objective": config.objective.to_dict()}
  config.objective = {
    "name": "gold",
    "kd_weight": 1.5,
    "ce_weight": 1.0,
    # Every byte is a token of the teacher too, so that the student has none to be sorted.
    "matched_weight": 1.0,
    "unmatched_weight": 0.0,
    "chunk_size": 48,
  }
  config.compare.names = {"baseline": "student_uld", "method": "student_gold"}
  config.compare.title = "GOLD and ULD: bytes taught by a teacher of 1,024 tokens"
  return config
