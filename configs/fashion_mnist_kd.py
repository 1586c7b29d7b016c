"""Hinton's distillation on Fashion-MNIST, with labels for a hundredth of the images.

  apt-get install dataset-fashion-mnist    # or --config.data.path=FOLDER with the four IDX files
  python -m launch.train --config=configs/fashion_mnist_kd.py --workdir=runs/fashion_mnist_kd
  python -m launch.compare --config=configs/fashion_mnist_kd.py --seeds=3 --workdir=runs/fmnist_3

`:tfds` reads the same images through tensorflow-datasets, prepared beforehand as array_record:

  python -m launch.train --config=configs/fashion_mnist_kd.py:tfds --workdir=runs/fmnist_tfds
"""

import ml_collections

from configs import base


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about two minutes. `tfds`: the same from TFDS. `paper`: all labels."""
  config = base.get_config()
  config.total_steps = 1500
  config.batch_size = 128
  config.data.name = "fashion_mnist"
  config.data.label_fraction = 0.01
  config.eval.batch_size = 512
  config.eval.every = 500
  config.student = {"name": "mlp", "hidden": (64,)}
  config.teacher.model = {"name": "mlp", "hidden": (512, 512), "dropout": 0.2}
  config.teacher.train = {
    "total_steps": 1500,
    "objective": {"name": "cross_entropy"},
    "data": {"label_fraction": 1.0},
    "optimizer": {"learning_rate": 1e-3},
  }
  config.objective = {"name": "hinton_kd", "temperature": 4.0, "kd_weight": 0.9, "ce_weight": 0.1}
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.title = "Hinton's distillation on Fashion-MNIST, a hundredth of the labels"
  if variant == "tfds":
    config.data.name = "tfds_images"
    config.data.dataset = "fashion_mnist"
  elif variant == "paper":
    config.data.label_fraction = 1.0
    config.total_steps = config.teacher.train.total_steps = 20_000
    config.compare.title = "Hinton's distillation on Fashion-MNIST, all labels"
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, tfds, paper")
  return config
