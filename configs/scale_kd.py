"""ScaleKD: a Swin transformer teaches a residual network through its own last stage.

python -m launch.train --config=configs/scale_kd.py --workdir=runs/scale_kd
python -m launch.compare --config=configs/scale_kd.py --seeds=3 --workdir=runs/scale_kd_3
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits, two CPU cores. `paper`: Swin-S into ResNet-50, ImageNet, 100 epochs.

  The teacher's folder is to be given as `config.teacher.checkpoint`, as of `paper`.
  """
  objective = {"name": "scale_kd", "student_layers": ("stage2", "stage3")}
  objective |= {"teacher_layers": ("stage2", "stage3"), "heads": (4, 8)}
  title = "ScaleKD: Swin into a residual network, a tenth of the labels"
  config = small_vision.distilled_by("small", objective, title)
  if variant == "small":
    config.teacher.model = {
      "name": "swin",
      "width": 16,
      "depths": (2, 2, 2),
      "heads": (2, 4, 8),
      "patch": 1,
      "window": 4,
    }
    config.teacher.train.total_steps = 600
  elif variant == "paper":
    epoch = 1_281_167 // 256
    config.total_steps = 100 * epoch
    config.batch_size = 256
    config.data.update({"name": "tfds_images", "dataset": "imagenet2012", "label_fraction": 1.0})
    config.data.augment = ({"name": "flip"},)
    config.student = {"name": "imagenet_resnet"}
    config.teacher.model = {"name": "swin", "depths": (2, 2, 18, 2)}
    config.objective = {"name": "scale_kd", "last_weights": (0.08, 0.0), "self_query": True}
    config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "steps"}
    config.optimizer.weight_decay = 1e-4
    config.checkpoint.every = config.eval.every = epoch
    config.baseline.data.labelled_only = False
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
