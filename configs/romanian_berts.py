"""Several teachers, their probabilities averaged, and how loyal the student is to them: digits.

  python -m launch.train --config=configs/romanian_berts.py --workdir=runs/romanian_berts
  python -m launch.compare --config=configs/romanian_berts.py --seeds=3 --workdir=runs/romanian_3

Two teachers that differ in their seeds see all labels, the student those of a tenth of the images;
the baseline is the student alone. The report has the loyalties to the teachers' average: of labels
(`agreement`) and of probabilities (`probability_loyalty`).
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: two fine-tuned BERTs into six layers of one.

  Temperature and weights are those of DistilBERT, whose recipe the paper follows, without its
  cosine between hidden states: an average of teachers has none. `paper` wants a folder `models`
  with two fine-tuned runs and their checkpoint, and a folder `data` with JSONL files; it distils
  the task, not masked tokens.
  """
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = digits_kd.get_config()
  config.objective = {"name": "hinton_kd", "temperature": 2.0, "kd_weight": 5.0, "ce_weight": 2.0}
  config.teacher.temperature = 2.0
  config.teacher.count = 2
  config.teacher.model = {"name": "mlp", "hidden": (128, 128)}
  config.compare.names = {"baseline": "student_alone", "method": "student_two_teachers"}
  config.compare.title = "The average of two teachers on digits"
  if variant == "paper":
    path = "models/bert-base-romanian-cased-v1"
    config.total_steps, config.batch_size = 20_000, 32
    config.data = config.data.copy_and_resolve_references()
    config.data.unlock()
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
    config.baseline = {"objective": {"name": "cross_entropy"}}
    config.compare.title = "The average of two BERTs into six layers"
  return config
