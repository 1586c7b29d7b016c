"""TGeo-KD against KD with one weight for all samples: digits, an unreliable teacher.

  python -m launch.train --config=configs/tgeo_kd.py --workdir=runs/tgeo_kd
  python -m launch.compare --config=configs/tgeo_kd.py --seeds=3 --workdir=runs/tgeo_kd_compare
  python -m launch.compare --config=configs/tgeo_kd.py:fashion --seeds=3 --workdir=runs/tgeo_f3

The teacher has learned from a tenth of the labels (of Fashion-MNIST, a hundredth) and so is wrong
on some samples; the student has all labels but a tenth of the images, which both variants hold out
as validation data.
"""

import ml_collections

from configs import digits_kd, fashion_mnist_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: the re-implementation's outer rate.

  `fashion`: images and models of `configs/fashion_mnist_kd.py`, four minutes.
  """
  clothing = variant == "fashion"
  config = (fashion_mnist_kd if clothing else digits_kd).get_config()
  config.data.label_fraction = 1.0
  config.data.validation_fraction = 0.1
  fraction = 0.01 if clothing else 0.1
  config.teacher.train.data = {"label_fraction": fraction, "labelled_only": True}
  if not clothing:
    config.teacher.model = {"name": "mlp", "hidden": (64,)}
    config.teacher.train.total_steps = 200
  config.batch_size = 64
  config.objective = {"name": "tgeo_kd", "temperature": 4.0}
  config.program = {
    "name": "bilevel",
    "virtual_learning_rate": 0.1,
    "outer_learning_rate": 1e-3,
  }
  config.baseline = {
    "objective": {"name": "hinton_kd", "temperature": 4.0, "kd_weight": 0.5, "ce_weight": 0.5},
    "program": {"name": "distill"},
  }
  config.compare.names = {"baseline": "student_kd", "method": "student_tgeo_kd"}
  config.compare.title = "TGeo-KD against KD with alpha 0.5 on " + (
    "Fashion-MNIST" if clothing else "digits"
  )
  if variant == "paper":
    config.program.outer_learning_rate = 0.1
  elif variant not in ("small", "fashion"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, fashion, paper")
  return config
