"""Talking Models against labels alone: digits, a tenth of the labels.

python -m launch.train --config=configs/talking_models.py --workdir=runs/talking_models
python -m launch.compare --config=configs/talking_models.py --seeds=3 --workdir=runs/talking_3
python -m launch.compare --config=configs/talking_models.py:fashion --seeds=3 --workdir=runs/t_f3
"""

import ml_collections

from configs import digits_kd, fashion_mnist_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: more rounds; the paper gives no weights.

  `fashion`: images of `configs/fashion_mnist_kd.py`, a hundredth of them labelled, two minutes.
  """
  clothing = variant == "fashion"
  config = (fashion_mnist_kd if clothing else digits_kd).get_config()
  config.teacher.model = {"name": "mlp", "hidden": (256,) * 3 if clothing else (128,) * 3}
  config.student = {"name": "mlp", "hidden": (64, 64) if clothing else (32, 32)}
  config.objective = {
    "name": "talking_models",
    "student_layers": (0, 1),
    "teacher_layers": (0, 2),
    "message_width": 64,
  }
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.names = {"baseline": "student_alone", "method": "student_talking"}
  config.compare.title = "Talking Models on " + ("Fashion-MNIST" if clothing else "digits")
  if variant == "paper":
    config.objective.rounds = 3
    config.objective.message_width = 128
  elif variant not in ("small", "fashion"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, fashion, paper")
  return config
