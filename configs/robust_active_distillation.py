"""Robust Active Distillation: which images to ask a teacher about that is sometimes wrong.

python -m launch.train   --config=configs/robust_active_distillation.py --workdir=runs/rad
python -m launch.compare --config=configs/robust_active_distillation.py --workdir=runs/r3 --seeds=3

Both variants have 27 labelled images and ask about 120 others, 40 in each of three rounds. The
baseline asks about those that its student finds hardest (margin sampling), where this teacher,
right on nine of ten images, errs most. WORKDIR/*/seed0/selection/queries.json has what was asked.
"""

import ml_collections

from configs import base


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits, two CPU cores. `paper`: ResNet-56 into ResNet-20, CIFAR-100, 5,000 labels."""
  config = base.get_config()
  config.objective = {"name": "labels_or_teacher"}
  config.data.validation_fraction = 0.1
  config.selection = {"name": "active", "strategy": "robust", "rounds": 3, "budget": 40}
  if variant == "small":
    config.data.label_fraction = 0.025
    config.total_steps = config.eval.every = config.checkpoint.every = 300
    config.batch_size = 32
    config.student = {"name": "mlp", "hidden": (32,)}
    config.teacher.model = {"name": "mlp", "hidden": (128,)}
    config.teacher.train = {
      "total_steps": 300,
      "objective": {"name": "cross_entropy"},
      "data": {"label_fraction": 0.06, "labelled_only": True},
      "selection": {"name": "everything"},
    }
  elif variant == "paper":
    epoch = 50_000 // 64
    config.data.update({"name": "tfds_images", "dataset": "cifar100", "label_fraction": 0.1})
    config.data.augment = ({"name": "shift", "pixels": 4}, {"name": "flip"})
    config.selection.update({"rounds": 10, "budget": 1000})
    config.total_steps = config.eval.every = config.checkpoint.every = 100 * epoch
    config.batch_size = 64
    config.student = {"name": "resnet", "depth": 20, "width": 16}
    config.teacher.model = {"name": "resnet", "depth": 56, "width": 16}
    config.teacher.train = {
      "objective": {"name": "cross_entropy"},
      "data": {"labelled_only": True},
      "selection": {"name": "everything"},
    }
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.baseline = {"selection": config.selection.to_dict() | {"strategy": "margin"}}
  config.compare.names = {"baseline": "student_margin", "method": "student_robust"}
  config.compare.title = "Robust active distillation against margin sampling"
  return config
