"""Which teacher suits which student: three students from four teachers.

  python -m launch.capacity_gap --config=configs/capacity_gap_law.py --seeds=3 --workdir=runs/gap

Students and teachers are networks of one hidden layer on handwritten digits; the teachers see every
label and the students a tenth of them. All learn for as many steps, half from labels and half from
the teacher.
"""

import ml_collections

from configs import digits_kd, small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: GPT-2's sizes on text in `data/corpus`.

  In `paper` teachers and students begin from random weights; the paper's were checkpoints.
  """
  if variant == "paper":
    return on_text()
  if variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = digits_kd.get_config()
  config.total_steps = 600
  config.eval.update({"every": 600, "best_metric": "nll", "higher_is_better": False})
  config.checkpoint.every = 600
  config.student = {"name": "mlp", "hidden": (8,)}
  config.teacher.model = {"name": "mlp", "hidden": (8,)}
  config.teacher.train.total_steps = 600
  half = {"kd_weight": 0.5, "ce_weight": 0.5}
  config.objective = {"name": "logit_kd", "loss": "soft_cross_entropy"} | half
  config.capacity_gap = {
    "students": tuple({"hidden": (width,)} for width in (4, 8, 16)),
    "teachers": tuple({"hidden": (width,)} for width in (8, 16, 32, 64)),
  }
  config.compare.title = "The law of the capacity gap on digits"
  return config


def on_text() -> ml_collections.ConfigDict:
  """GPT-2's sizes, trained as MiniMA was distilled."""
  config = small_text.get_config()
  config.data.update(
    {
      "tokenizer": "models/gpt2",
      "sequence_length": 1024,
      "max_documents": None,
      "pack": "concat",
      "sources": {"corpus": {"kind": "jsonl", "path": "data/corpus"}},
    }
  )
  small, medium, large, xl = (
    {"width": width, "depth": depth, "heads": heads}
    for width, depth, heads in ((768, 12, 12), (1024, 24, 16), (1280, 36, 20), (1600, 48, 25))
  )
  config.student = {"name": "decoder"} | small
  config.teacher.model = {"name": "decoder"} | medium
  config.capacity_gap = {"students": (small, medium), "teachers": (medium, large, xl)}
  half = {"kd_weight": 0.5, "ce_weight": 0.5, "chunk_size": 32}
  config.objective = {"name": "logit_kd", "loss": "soft_cross_entropy"} | half
  config.compare.title = "The law of the capacity gap"
  config.batch_size, config.total_steps = 1024, 10_000
  config.optimizer.update({"learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1})
  config.optimizer.warmup_steps = 100
  config.compare.vectorize = False
  config.eval.every = config.checkpoint.every = 1000
  return config
