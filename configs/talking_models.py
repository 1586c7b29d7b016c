"""Talking Models against labels alone: digits, a tenth of the labels.

python -m launch.train --config=configs/talking_models.py --workdir=runs/talking_models
python -m launch.compare --config=configs/talking_models.py --seeds=3 --workdir=runs/talking_3
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: more rounds; the paper gives no weights."""
  config = digits_kd.get_config()
  config.teacher.model = {"name": "mlp", "hidden": (128, 128, 128)}
  config.student = {"name": "mlp", "hidden": (32, 32)}
  config.objective = {
    "name": "talking_models",
    "student_layers": (0, 1),
    "teacher_layers": (0, 2),
    "message_width": 64,
  }
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.names = {"baseline": "student_alone", "method": "student_talking"}
  config.compare.title = "Talking Models on digits"
  if variant == "paper":
    config.objective.rounds = 3
    config.objective.message_width = 128
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
