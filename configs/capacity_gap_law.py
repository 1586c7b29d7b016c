"""Which teacher suits which student: three students from four teachers.

  python -m launch.capacity_gap --config=configs/capacity_gap_law.py --seeds=3 --workdir=runs/gap

Students and teachers are SmolLM2 shrunken to different sizes, trained on Python's library; students
learn half from labels and half from the teacher.
"""

import ml_collections

from configs import small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: GPT-2's sizes on text in `data/corpus`.

  In `paper` teachers and students begin from random weights; the paper's were checkpoints.
  """
  if variant == "paper":
    return on_text()
  if variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = small_text.get_config()
  whole = {"name": "pretrained", "path": small_text.SMOLLM2}
  config.student = whole | small_text.SIZES
  config.teacher.model = whole
  config.optimizer.learning_rate = 3e-3  # every size is cut anew
  config.total_steps = 200
  config.eval.every = config.checkpoint.every = 200
  config.teacher.train.total_steps = 400
  half = {"kd_weight": 0.5, "ce_weight": 0.5, "chunk_size": 32}
  config.objective = {"name": "logit_kd", "loss": "soft_cross_entropy"} | half
  sizes = lambda layers, width: {"layers": layers, "width": width, "mlp_width": 2 * width}  # noqa: E731
  config.capacity_gap = {
    "students": tuple(sizes(1, width) for width in (16, 24, 32)),
    "teachers": (sizes(1, 48), sizes(1, 72), sizes(2, 96), sizes(4, 96)),
  }
  config.compare.title = "The law of the capacity gap on Python's library"
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
  config.teacher.fine_tune = None
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
