"""What the vision distillers share: a small residual network taught by a larger one on digits.

Every method is compared with the student alone, which trains as long on the labelled tenth of the
images. The weights of the methods are those of their recipes for CIFAR-100, untuned for digits.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import base

EPOCH = 50_000 // 64  # steps of the recipe for CIFAR-100
STAGES = tuple((stage, stage) for stage in ("stage1", "stage2", "stage3"))


def distilled_by(
  variant: str, objective: Mapping[str, Any], title: str
) -> ml_collections.ConfigDict:
  """A config for an objective.

  Args:
    variant: `small`: digits, two CPU cores. `paper`: resnet56 into resnet20 on CIFAR-100 (through
      TFDS, prepared beforehand as array_record) with 240 epochs of SGD, the recipe of
      megvii-research/mdistiller; its padded crop is a shift here.
    objective: as `config.objective`.
    title: of the comparison.
  """
  config = base.get_config()
  config.objective = dict(objective)
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.title = title
  if variant == "small":
    config.total_steps = 300
    config.batch_size = 64
    config.data.label_fraction = 0.1
    config.student = {"name": "resnet", "depth": 8, "width": 4}
    config.teacher.model = {"name": "resnet", "depth": 8, "width": 16}
    config.teacher.train = {
      "total_steps": 300,
      "objective": {"name": "cross_entropy"},
      "data": {"label_fraction": 1.0, "augment": ({"name": "shift", "pixels": 1},)},
      "optimizer": {"learning_rate": 3e-3},
    }
    config.optimizer.learning_rate = 3e-3
    config.eval.every = 150
  elif variant == "paper":
    config.total_steps = 240 * EPOCH
    config.batch_size = 64
    config.data.name = "tfds_images"
    config.data.dataset = "cifar100"
    config.data.augment = ({"name": "shift", "pixels": 4}, {"name": "flip"})
    config.student = {"name": "resnet", "depth": 20, "width": 16}
    config.teacher.model = {"name": "resnet", "depth": 56, "width": 16}
    config.teacher.train = {
      "objective": {"name": "cross_entropy"},
      "data": {"augment": config.data.augment},
    }
    config.optimizer = {
      "name": "sgd",
      "learning_rate": 0.05,
      "schedule": "steps",
      "weight_decay": 5e-4,
    }
    config.checkpoint.every = config.eval.every = 5 * EPOCH
    config.baseline.data.labelled_only = False
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
