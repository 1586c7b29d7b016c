"""FIRST: the teacher's five likeliest tokens, calibrated, against the same five as they are.

  python -m launch.train   --config=configs/first.py --workdir=runs/first
  python -m launch.compare --config=configs/first.py --workdir=runs/first_compare --seeds=3

The teacher has read a few documents several times and is surer than it is right. The temperature of
its five tokens is chosen on validation rows before the first step. From a cache, which holds
the five tokens and nothing else (the validation rows are shown to the live teacher):

  python -m launch.cache_teacher --config=configs/first.py --out=runs/first_signals \
    --kind=top_k --k=5 --config.teacher.checkpoint=runs/first/teacher
  python -m launch.train --config=configs/first.py --workdir=runs/first_cached \
    --config.teacher.kind=cached --config.teacher.cache=runs/first_signals \
    --config.teacher.checkpoint=runs/first/teacher
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: Qwen1.5-7B into 1.8B on Alpaca.

  For `paper`, `data/alpaca` holds chats as JSON lines and the models lie in `models/`; the teacher
  has been fine-tuned on them.
  """
  config = small_text.get_config()
  config.objective = {"name": "first", "k": 5, "chunk_size": 32}
  raw = {"name": "first", "k": 5, "temperature": 1.0, "chunk_size": 32}
  config.baseline = {"objective": raw}
  config.eval.best_metric = "ece"
  config.compare.names = {"baseline": "student_raw_top_5", "method": "student_first"}
  config.compare.title = "FIRST: calibrated against raw top-5 targets"
  if variant == "small":
    config.teacher.train.data = {"max_documents": 8}
    config.teacher.train.total_steps = 600
    return config
  if variant != "paper":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.update(
    {
      "tokenizer": "models/qwen1.5-7b",
      "sequence_length": 512,
      "max_documents": None,
      "validation_fraction": 0.05,
      "sources": {"alpaca": {"kind": "chat", "path": "data/alpaca"}},
    }
  )
  small_text.between_checkpoints(config, teacher="models/qwen1.5-7b", student="models/qwen1.5-1.8b")
  config.batch_size = 16
  config.total_steps = 9750  # three epochs of 52,002 examples, one a row
  config.data.pack = "none"
  config.optimizer.learning_rate = 2e-6
  config.optimizer.warmup_steps = 292
  config.eval.every = config.checkpoint.every = 1000
  return config
