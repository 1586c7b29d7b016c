"""TransKD: a SegFormer teaches a smaller one to label every place of composed scenes.

  apt-get install dataset-fashion-mnist    # or config.data.images.path=FOLDER with the IDX files
  python -m launch.train --config=configs/trans_kd.py --workdir=runs/trans_kd
  python -m launch.compare --config=configs/trans_kd.py --seeds=3 --workdir=runs/trans_kd_3

Scenes are three shrunken items of Fashion-MNIST on a noisy ground, whose labels are known. The
metric is the mean intersection over union of eleven classes, of which one is the ground.
"""

import ml_collections

from configs import base


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: SegFormer-B2 into B0, of the paper's sizes and recipe.

  There is no reader of Cityscapes here: `paper` has its sizes on larger scenes.
  """
  config = base.get_config()
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  small = variant == "small"
  shared = ("seed", "label_fraction", "labelled_only", "validation_fraction", "augment", "threads")
  config.data = {name: config.data[name] for name in (*shared, "path")} | {
    "name": "scenes",
    "images": {"name": "fashion_mnist"},
  }
  config.objective = {"name": "trans_kd", "preset": "base"}  # or "gl", "ea"
  config.baseline = {"objective": {"name": "cross_entropy"}}
  config.eval.best_metric = "mean_iou"
  config.compare.names = {"baseline": "student_alone", "method": "student_trans_kd"}
  config.compare.title = "TransKD on composed scenes"
  if small:
    config.total_steps = 200
    config.batch_size = 16
    config.eval.update({"every": 200, "batch_size": 100})
    config.optimizer.learning_rate = 2e-3
    shape = {"name": "segformer", "stride": 2, "heads": (1, 1, 2), "reductions": (4, 2, 1)}
    config.student = shape | {"widths": (8, 16, 24), "depths": (1, 1, 1), "decoder_width": 24}
    wide = {"widths": (16, 32, 64), "depths": (1, 1, 2), "decoder_width": 48}
    config.teacher.model = shape | wide
    config.teacher.train = {"total_steps": 400, "objective": {"name": "cross_entropy"}}
    three = {"stages": ("stage1", "stage2", "stage3"), "patches": ("embed1", "embed2", "embed3")}
    config.objective.update(three | {"patch_weights": (0.1, 0.5, 1.0), "middle": 16})
  else:
    config.data.update({"side": 512, "items": 40, "shrink": 1, "stride": 4, "train_scenes": 2975})
    config.total_steps = 1000 * 2975 // 2
    config.batch_size = 2
    config.student = {"name": "segformer"}
    config.teacher.model = {
      "name": "segformer",
      "widths": (64, 128, 320, 512),
      "depths": (3, 4, 6, 3),
      "decoder_width": 768,
    }
    config.teacher.train = {"objective": {"name": "cross_entropy"}}
    config.optimizer = {"name": "adamw", "learning_rate": 6e-5, "schedule": "linear"}
    config.optimizer.weight_decay = 0.01
    config.checkpoint.every = config.eval.every = 10 * 2975 // 2
  return config
