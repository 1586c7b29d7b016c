"""ProC-KD: a teacher of six kinds of clothing helps to learn the four others from few labels.

  apt-get install dataset-fashion-mnist    # or config.data.images.path=FOLDER with the IDX files
  python -m launch.train --config=configs/proc_kd.py --workdir=runs/proc_kd
  python -m launch.compare --config=configs/proc_kd.py --seeds=3 --workdir=runs/proc_kd_3

Teacher and student have no class in common. The row of the teacher in launch.train's table holds
its answers against the student's labels and means nothing.
"""

import ml_collections

from configs import base


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about two minutes. `paper`: DeiT-B into six of its layers, CIFAR-100.

  The folder of DeiT-B in Hugging Face's format is models/deit-base-patch16-224.
  """
  config = base.get_config()
  config.objective = {"name": "proc_kd"}
  config.baseline = {"objective": {"name": "cross_entropy"}}
  config.compare.names = {"baseline": "student_alone", "method": "student_proc_kd"}
  if variant == "small":
    images = {"name": "some_classes", "images": {"name": "fashion_mnist"}}
    every = config.data.to_dict()
    config.data = every | images | {"classes": (6, 7, 8, 9), "label_fraction": 0.005}
    # As in the paper both sides learn from labelled images alone: 120 of them.
    config.data.labelled_only = True
    config.total_steps = 400
    config.batch_size = 64
    config.eval.every = 200
    model = {"name": "vit", "patch": 7, "pool": "cls"}
    config.student = model | {"width": 32, "depth": 2}
    config.teacher.model = model | {"width": 64, "depth": 4, "num_classes": 6}
    config.teacher.train = {
      "total_steps": 800,
      "objective": {"name": "cross_entropy"},
      "data": every | images | {"classes": (0, 1, 2, 3, 4, 5)},
      "optimizer": {"warmup_steps": 50},
    }
    config.optimizer.learning_rate = 2e-3
    config.objective.prototypes = 16
    config.compare.title = "ProC-KD on Fashion-MNIST: taught by a network of other classes"
  elif variant == "paper":
    epoch = 50_000 // 64
    config.total_steps = 300 * epoch
    config.batch_size = 64
    # The images are to be stored at 224 pixels: with write_array_records, for example.
    config.data.update({"name": "array_record_images", "path": "data/cifar100_224"})
    config.data.num_classes = 100
    config.data.augment = ({"name": "flip"}, {"name": "rand_augment"})
    config.student = {"name": "vit", "patch": 16, "width": 768, "depth": 6, "heads": 12}
    config.student.pool = "cls"
    config.teacher.model = {"name": "pretrained_image", "path": "models/deit-base-patch16-224"}
    config.teacher.model.num_classes = 1000
    config.optimizer = {"name": "adamw", "learning_rate": 5e-4, "schedule": "cosine"}
    config.optimizer.update({"warmup_steps": 5 * epoch, "weight_decay": 0.05})
    config.checkpoint.every = config.eval.every = 5 * epoch
    config.compare.title = "ProC-KD: DeiT-B into six layers on CIFAR-100"
  else:
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
