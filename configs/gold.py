"""As configs/uld.py, but compared where the tokens of both sides spell the same bytes (GOLD).

python -m launch.train   --config=configs/gold.py --workdir=runs/gold
python -m launch.compare --config=configs/gold.py --workdir=runs/gold_compare --seeds=3
"""

import ml_collections

from configs import uld


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """The student has labels too, with the weight that ULD gives them; the baseline is ULD.

  `small`: two CPU cores, some two minutes. `paper`: Qwen2-1.5B into Llama-3.2-1B as
  TRL's example has it (trl/experimental/gold/gold.py), without its sampling; `data/arena` holds
  the chats.
  """
  config = uld.get_config(variant)
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
  if variant == "paper":
    uld.with_checkpoints(
      config, teacher="models/qwen2-1.5b-instruct", student="models/llama-3.2-1b-instruct"
    )
    config.data.sources = {"arena": {"kind": "chat", "path": "data/arena"}}
    config.batch_size, config.optimizer.accumulate = 32, 8
    config.optimizer.learning_rate = 2e-5
    config.objective.update({"ce_weight": 0.0, "kd_weight": 1.0})
    del config.objective["matched_weight"], config.objective["unmatched_weight"]  # by their share
  return config
