"""TinyViT: a teacher's sparse signals stored once with the seeds of its images' augmentations.

python -m launch.train --config=configs/tinyvit.py --workdir=runs/tinyvit
python -m launch.compare --config=configs/tinyvit.py --seeds=3 --workdir=runs/tinyvit_3

Both train the teacher, store its likeliest classes in WORKDIR/signals, and train students that read
them and never run the teacher. To store them by itself, and share them among students:

python -m launch.cache_teacher --config=configs/tinyvit.py --config.teacher.kind=frozen \
  --config.teacher.checkpoint=TEACHER --kind=top_k --k=3 --versions=12 --out=SIGNALS
python -m launch.train --config=configs/tinyvit.py --config.teacher.checkpoint=TEACHER \
  --config.teacher.cache=SIGNALS --workdir=runs/tinyvit_stored
"""

import ml_collections

from configs import small_vision


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits, 3 of 10 classes, 12 epochs of augmentations, on two CPU cores.

  `paper`: CLIP-ViT-L/14's 100 likeliest of ImageNet-22k's 21,841 classes over 90 epochs; the
  teacher's folder is to be given as `config.teacher.checkpoint`.
  """
  objective = {"name": "logit_kd", "loss": "sparse_cross_entropy", "tail": "spread"}
  title = "TinyViT: distillation from stored signals, a tenth of the labels"
  # What differs from the other vision distillers is data and teacher; these come below.
  config = small_vision.distilled_by("small", objective, title)
  config.teacher.kind = "cached"
  strong = ({"name": "shift", "pixels": 1}, {"name": "rand_augment", "magnitude": 5.0})
  if variant == "small":
    config.data.augment = strong
    config.teacher.train.data = {"label_fraction": 1.0, "augment": strong}
    config.teacher.store = {"kind": "top_k", "k": 3, "versions": 12}
  elif variant == "paper":
    epoch = 14_197_122 // 4096
    config.total_steps = 90 * epoch
    config.batch_size = 4096
    config.data.update({"name": "tfds_images", "dataset": "imagenet21k", "label_fraction": 1.0})
    config.data.size = 224
    config.data.augment = (
      {"name": "random_resized_crop"},
      {"name": "flip"},
      {"name": "rand_augment"},
      {"name": "random_erasing"},
    )
    config.student = {"name": "tinyvit", "drop_path": 0.1}
    config.teacher.model = {"name": "vit", "patch": 14, "width": 1024, "depth": 24, "heads": 16}
    config.teacher.store = {"kind": "top_k", "k": 100, "versions": 90}
    config.optimizer = {
      "name": "adamw",
      "learning_rate": 2e-3,  # 2.5e-4 for each 512 images of a batch
      "schedule": "cosine",
      "warmup_steps": 5 * epoch,
      "weight_decay": 0.01,
      "clip_norm": 5.0,
    }
    config.checkpoint.every = config.eval.every = epoch
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  # The student alone sees as many images, augmented anew in each epoch, and asks no teacher.
  config.baseline = {
    "objective": {"name": "cross_entropy"},
    "teacher": {"kind": "frozen"},
    "data": {"labelled_only": variant == "small"},
  }
  return config
