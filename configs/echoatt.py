"""EchoAtt: a decoder whose inner layers share attention maps, repaired in two stages.

python -m launch.train --config=configs/echoatt.py --workdir=runs/echoatt
python -m launch.compare --config=configs/echoatt.py --seeds=3 --workdir=runs/echoatt_3

The student is the teacher, weights and all, but that the layers of a block use the queries and keys
of its first layer and have no weights for their own. First it learns from the teacher's signals
alone, then from labels alone. The baseline repairs the same student with labels alone, in as many
steps.
"""

import ml_collections

from configs import small_text

# Layers 2 to 5 of 8, and 4 to 17 of 22, in blocks of 4 and of 3.
SMALL = (0, 1, 2, 2, 2, 2, 6, 7)
PAPER = (0, 1, 2, 3, 4, 4, 4, 7, 7, 7, 10, 10, 10, 13, 13, 13, 16, 16, 18, 19, 20, 21)


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: TinyLlama-1.1B, some 4% of whose weights go (published).

  Which of its layers share is ours, chosen for those 4%; so are steps, rates and weights, which no
  summary gives. `paper` wants `models/tinyllama` and text in `data/text`.
  """
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = small_text.get_config()
  small = variant == "small"
  shared = SMALL if small else PAPER
  stages = (120, 120) if small else (10_000, 10_000)
  if small:
    config.teacher.model = whole = {"name": "pretrained", "path": small_text.SMOLLM2}
    config.student = whole | {"attention_from": shared, "inherit": True}
  else:
    model = {"name": "pretrained", "path": "models/tinyllama"}
    config.teacher.model = model
    config.teacher.dtype = "bfloat16"
    config.teacher.fine_tune = None
    config.student = model | {"attention_from": shared}
    config.data.update(
      {
        "tokenizer": "models/tinyllama",
        "sequence_length": 2048,
        "max_documents": None,
        "sources": {"text": {"kind": "folder", "path": "data/text"}},
      }
    )
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 200
    config.eval.every = config.checkpoint.every = 1000
  labels = {"name": "cross_entropy", "chunk_size": 32}
  config.total_steps = stages[1]
  config.objective = labels
  signals = {"name": "echoatt", "attention_from": shared, "chunk_size": 32}
  config.stages = (
    {"name": "signals", "total_steps": stages[0], "objective": signals},
    {"name": "labels"},
  )
  config.baseline = {"stages": None, "total_steps": sum(stages)}
  config.compare.names = {"baseline": "student_labels", "method": "student_two_stages"}
  config.compare.title = "EchoAtt's two stages against labels alone"
  config.compare.vectorize = False
  return config
