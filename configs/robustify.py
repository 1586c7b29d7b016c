"""Efficiently Robustify: a small robust network tunes a part of a large one, on Fashion-MNIST.

  apt-get install dataset-fashion-mnist    # or config.data.images.path=FOLDER with the IDX files
  python -m launch.train --config=configs/robustify.py --workdir=runs/robustify
  python -m launch.compare --config=configs/robustify.py --seeds=3 --workdir=runs/robustify_3
  python -m launch.compare --config=configs/robustify.py:seen --seeds=3 --workdir=runs/seen_3

Both variants begin with a large network trained on clean images. The baseline then trains all of it
on clean and damaged images and their labels; the method tunes its last layer and two heads. Damage
in training is of the two kinds that ImageNet-C sets apart for it; the error is on seven others.
With `seen` the training has those seven: what can be learned of damage that is known beforehand.
"""

import ml_collections

from configs import base

TRAINING = ("speckle_noise", "gaussian_blur")
TEST = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "brightness")
TEST += ("contrast", "pixelate")
GROUPS = (
  {"pattern": "student/tuned", "scale": 1.0},
  {"pattern": "student/", "scale": 0.0},
)


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`, `seen`: two CPU cores, two minutes. `paper`: ResNet-50 into ViT-L/16, ImageNet.

  `paper` takes the large model from models/vit-large-patch16-224; its robust teacher is to be given
  as `config.teacher.checkpoint`.
  """
  config = base.get_config()
  damage = {"name": "corrupt", "kinds": TEST if variant == "seen" else TRAINING}
  config.teacher.train.data = {"augment": (damage | {"probability": 0.8},)}
  config.objective = {"name": "robustify"}
  config.data = {**config.data.to_dict(), "name": "corrupted"}
  config.data.augment = ({"name": "two_views", "strong": (damage,)},)
  config.eval.update({"best_metric": "corruption_error", "higher_is_better": False})
  config.compare.names = {"baseline": "student_all_tuned", "method": "student_robustified"}
  if variant in ("small", "seen"):
    config.data.update({"images": {"name": "fashion_mnist"}, "copied": 500})
    config.total_steps = 500
    config.batch_size = 64
    config.eval.every = 500
    config.eval.batch_size = 512
    large = {"name": "mlp", "hidden": (512, 256, 128)}
    student = {"name": "robustified", "model": large, "tuned": "layer_2"}
    config.teacher.model = {"name": "mlp", "hidden": (128,)}
    config.teacher.train.update({"total_steps": 1500, "batch_size": 128})
    told = "other damage in training" if variant == "small" else "the same damage in training"
    config.compare.title = f"Efficiently Robustify on Fashion-MNIST, {told}"
    first = {"name": "clean", "total_steps": 1500, "batch_size": 128}
    first |= {"student": student | {"trained": "original"}, "data": {"augment": ()}}
    first |= {"objective": {"name": "cross_entropy"}}
    second = {"name": "tuned"}
    whole = second | {"student": first["student"], "objective": first["objective"]}
    config.stages = (first, second | {"optimizer": {"groups": GROUPS}})
    config.baseline = {"stages": (first, whole)}
  elif variant == "paper":
    epoch = 1_281_167 // 1024
    config.data.update({"images": {"name": "tfds_images", "dataset": "imagenet2012"}})
    config.total_steps = 10 * epoch
    config.batch_size = 1024
    large = {"name": "pretrained_image", "path": "models/vit-large-patch16-224"}
    student = {"name": "robustified", "model": large, "tuned": "blocks", "last": 1}
    config.teacher.model = {"name": "imagenet_resnet"}
    config.optimizer = {"name": "adamw", "learning_rate": 1e-4, "groups": GROUPS}
    config.checkpoint.every = config.eval.every = epoch
    config.compare.title = "Efficiently Robustify: ViT-L/16 on ImageNet-C's damage"
    whole = {"student": student | {"trained": "original"}, "objective": {"name": "cross_entropy"}}
    config.baseline = whole | {"optimizer": {"groups": ()}}
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, seen, paper")
  config.student = student
  return config
