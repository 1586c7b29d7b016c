"""Which teacher suits which student: three students from four teachers, on tokens.

  python -m launch.capacity_gap --config=configs/capacity_gap_law.py --seeds=3 --workdir=runs/gap

Students and teachers are decoders of one layer that differ in width; all learn from the same text
for as many steps, half from labels and half from the teacher.
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some three minutes. `paper`: GPT-2's sizes, as MiniMA distils.

  `paper` needs the text in `data/corpus`; its teachers and students begin from random weights.
  """
  config = small_text.get_config()
  config.total_steps = 150
  config.eval.every = config.checkpoint.every = 150
  config.student = {"name": "decoder", "width": 16, "depth": 1, "heads": 2}
  config.teacher.model = {"name": "decoder", "width": 32, "depth": 1, "heads": 2}
  config.teacher.train.total_steps = 300
  half = {"kd_weight": 0.5, "ce_weight": 0.5, "chunk_size": 32}
  config.objective = {"name": "logit_kd", "loss": "soft_cross_entropy"} | half
  config.compare.title = "The law of the capacity gap"
  widths = {"students": (8, 16, 32), "teachers": (16, 32, 64, 128)}
  config.capacity_gap = {
    side: tuple({"width": width} for width in each) for side, each in widths.items()
  }
  if variant == "small":
    return config
  if variant != "paper":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.update(
    {
      "tokenizer": "models/gpt2",
      "sequence_length": 1024,
      "max_documents": None,
      "pack": "concat",
      "sources": {"corpus": {"kind": "jsonl", "path": "data/corpus"}},
    }
  )
  shapes = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20)}
  shapes["xl"] = (1600, 48, 25)
  gpt2 = {
    name: {"width": width, "depth": depth, "heads": heads}
    for name, (width, depth, heads) in shapes.items()
  }
  config.capacity_gap.students = tuple(gpt2[name] for name in ("small", "medium"))
  config.capacity_gap.teachers = tuple(gpt2[name] for name in ("medium", "large", "xl"))
  config.batch_size, config.total_steps = 1024, 10_000
  config.optimizer.update({"learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1})
  config.optimizer.warmup_steps = 100
  config.compare.vectorize = False
  config.eval.every = config.checkpoint.every = 1000
  return config
