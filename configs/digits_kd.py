"""Hinton's distillation on handwritten digits, with labels for a tenth of the images.

  python -m launch.train --config=configs/digits_kd.py --workdir=runs/digits_kd
  python -m launch.compare --config=configs/digits_kd.py --seeds=3 --workdir=runs/digits_kd_compare

A ViT trained on all 1,200 labels teaches a network of 2,410 parameters that sees 120 labels. The
baseline trains the same student, for as many steps, on the 120 labelled images alone.
"""

import ml_collections

from configs import base


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about a minute. `paper`: all labels, as the paper trains."""
  config = base.get_config()
  config.total_steps = 1200
  config.batch_size = 128
  config.data.label_fraction = 0.1
  config.student = {"name": "mlp", "hidden": (32,)}
  config.teacher.model = {
    "name": "vit",
    "patch": 4,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "mlp_ratio": 2,
  }
  config.teacher.train = {
    "total_steps": 1000,
    "objective": {"name": "cross_entropy"},
    "data": {"label_fraction": 1.0, "augment": ({"name": "shift", "pixels": 1},)},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 50},
  }
  config.objective = {"name": "hinton_kd", "temperature": 4.0, "kd_weight": 0.9, "ce_weight": 0.1}
  config.optimizer.learning_rate = 3e-3
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.title = "Hinton's distillation on digits, a tenth of the labels"
  if variant == "paper":
    config.data.label_fraction = 1.0
    config.compare.title = "Hinton's distillation on digits, all labels"
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
