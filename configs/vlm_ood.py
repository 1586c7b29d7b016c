"""Li et al. 2023: a CLIP's space of images and texts, for classes that the student never sees.

python -m launch.train --config=configs/vlm_ood.py --workdir=runs/vlm_ood
python -m launch.compare --config=configs/vlm_ood.py --seeds=3 --workdir=runs/vlm_ood_3
python -m launch.compare --config=configs/vlm_ood.py:fashion_mnist --seeds=3 --workdir=runs/vf3

The student sees images of the base classes alone. The baseline learns their labels, in the same
space of texts; the method the teacher's images and alignment as well.
"""

import ml_collections

from configs import open_vocabulary


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits, two CPU cores, about two minutes. `fashion_mnist`: its images, five minutes.

  `paper`: ViT-L/14 into a ResNet-18 with SGD, 90 epochs, on EuroSAT at 224 pixels (the paper has
  five other sets), from a checkpoint in models/ and images in data/eurosat.
  """
  if variant not in ("small", "fashion_mnist", "paper"):
    raise ValueError(
      f"variant {variant!r} does not exist; what exists: small, fashion_mnist, paper"
    )
  if variant == "paper":
    config = open_vocabulary.pretrained("clip-vit-large-patch14")
    image_model, embedding = {"name": "imagenet_resnet"}, 768
    config.batch_size = 128
    config.total_steps = 90 * 13_500 // 128
    config.optimizer = {"name": "sgd", "learning_rate": 0.05, "schedule": "steps"}
    config.optimizer.weight_decay = 1e-4
  else:
    small = variant == "small"
    config = open_vocabulary.get_config("digits" if small else "fashion_mnist")
    image_model, embedding = {"name": "resnet", "depth": 8, "width": 8}, open_vocabulary.EMBEDDING
    if not small:
      image_model = {"name": "vit", "patch": 7, "width": 32, "depth": 2}
    config.total_steps = 300 if small else 600
    config.optimizer.learning_rate = 3e-3
    config.eval.every = config.total_steps
  config.data.labelled_only = True
  config.student = {
    "name": "open_vocabulary",
    "image_model": image_model,
    "embedding": embedding,
    "temperature": 0.07,
  }
  config.objective = {"name": "vlm_ood"}
  others = {"mse_weight": 0.0, "contrast_weight": 0.0, "align_weight": 0.0}
  config.baseline = {"objective": {"name": "vlm_ood"} | others}
  config.teacher.train = config.teacher.train.to_dict() | {
    "data": config.teacher.train.data.to_dict() | {"labelled_only": False}
  }
  config.compare.names = {"baseline": "student_labels", "method": "student_vlm_ood"}
  config.compare.title = "A CLIP's space imitated on the base classes, five of ten held out"
  return config
