"""KD++ (norm and direction of features) against KD: digits, a tenth of the labels.

python -m launch.train --config=configs/nd_loss.py --workdir=runs/nd_loss
python -m launch.compare --config=configs/nd_loss.py --seeds=3 --workdir=runs/nd_loss_compare
python -m launch.compare --config=configs/nd_loss.py:fashion --seeds=3 --workdir=runs/nd_f3
"""

import ml_collections

from configs import digits_kd, fashion_mnist_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: ResNet56 to ResNet20 with SGD, 240 epochs.

  `fashion`: images and models of `configs/fashion_mnist_kd.py`, two minutes. `paper` keeps the
  digits as data: point config.data at CIFAR-100 through tfds_images.
  """
  clothing = variant == "fashion"
  config = (fashion_mnist_kd if clothing else digits_kd).get_config()
  weights = {"kd_weight": 1.0, "ce_weight": 1.0}
  config.objective = {"name": "nd_loss", "nd_weight": 2.0, "temperature": 4.0, **weights}
  config.baseline = {"objective": {"name": "hinton_kd", "temperature": 4.0, **weights}}
  config.compare.names = {"baseline": "student_kd", "method": "student_kd_nd"}
  config.compare.title = "KD++ (norm and direction) against KD on " + (
    "Fashion-MNIST" if clothing else "digits"
  )
  if variant == "paper":
    config.data.label_fraction = 1.0
    config.teacher.model = {"name": "resnet", "depth": 56, "width": 16}
    config.student = {"name": "resnet", "depth": 20, "width": 16}
    config.total_steps = config.teacher.train.total_steps = 240 * 390
    config.objective.warmup_steps = 20 * 390
    config.optimizer = {
      "name": "sgd",
      "nesterov": True,
      "learning_rate": 0.1,
      "schedule": "steps",
      "weight_decay": 5e-4,
    }
  elif variant not in ("small", "fashion"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, fashion, paper")
  return config
