"""MiniPLM: the half of the text that the teacher knows better than a small reference does.

  python -m launch.train   --config=configs/miniplm.py --workdir=runs/miniplm
  python -m launch.compare --config=configs/miniplm.py --workdir=runs/miniplm_compare --seeds=3

One command trains the teacher, the reference (on documents of its own), scores every row of the
text by both, and trains the student from scratch on the rows that are kept, with labels alone. The
baseline learns from a random half.
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: the 200 M student of Qwen1.5-1.8B.

  For `paper`, `data/corpus` holds the text as JSON lines and `models/qwen1.5-1.8b` the teacher; the
  reference has 104 M parameters and 5 B tokens of its own.
  """
  config = small_text.get_config()
  config.objective = {"name": "cross_entropy", "chunk_size": 32}
  config.student.weights = False  # it pre-trains, as its reference does
  config.optimizer.learning_rate = 3e-3
  config.data.validation_fraction = 0.25
  config.selection = {
    "name": "difference",
    "ratio": 0.5,
    "model": small_text.STUDENT | {"width": 16, "mlp_width": 32, "weights": False},
    "train": {"total_steps": 300},
  }
  config.baseline = {"selection": {"name": "random", "ratio": 0.5}}
  config.compare.names = {"baseline": "student_random_half", "method": "student_miniplm"}
  config.compare.title = "MiniPLM: the half of the text that the teacher knows better"
  if variant == "small":
    return config
  if variant != "paper":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.update(
    {
      "tokenizer": "models/qwen1.5-1.8b",
      "sequence_length": 1024,
      "max_documents": None,
      "validation_fraction": 0.05,
      "test_fraction": 0.001,
      "pack": "concat",
      "sources": {"corpus": {"kind": "jsonl", "path": "data/corpus"}},
    }
  )
  config.teacher.model = {"name": "pretrained", "path": "models/qwen1.5-1.8b"}
  config.teacher.dtype = "bfloat16"
  config.teacher.fine_tune = None
  config.student = {"name": "decoder", "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
  config.selection.model = {
    "name": "decoder",
    "width": 512,
    "depth": 8,
    "heads": 8,
    "mlp_width": 2048,
  }
  config.selection.train = {"total_steps": 10_000}
  config.total_steps, config.batch_size = 100_000, 512
  config.optimizer.learning_rate = 6e-4  # the paper ends at 6e-5, this schedule at 0
  config.optimizer.warmup_steps = 2000
  config.optimizer.update({"b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.01})
  config.eval.every = config.checkpoint.every = 5000
  return config
