"""PromptKD: a CLIP teacher's logits on unlabelled images, imitated by prompts and a projector.

python -m launch.train --config=configs/prompt_kd.py --workdir=runs/prompt_kd
python -m launch.compare --config=configs/prompt_kd.py --seeds=3 --workdir=runs/prompt_kd_3
python -m launch.compare --config=configs/prompt_kd.py:fashion_mnist --seeds=3 --workdir=runs/pf3

First the whole student learns the base classes from their labels, in the teacher's space of texts.
Then its backbone is frozen, and prompts and projector learn from all images: the method from the
teacher's logits, no labels; the baseline from the labels of the base classes.
"""

import ml_collections

from configs import open_vocabulary

# The frozen backbone is out of reach of gradients; the groups keep it from decay as well.
GROUPS = (
  {"pattern": "student/(image/prompts|projector)", "scale": 1.0},
  {"pattern": "student/", "scale": 0.0},
)
TOLD = {"objective": {"name": "base_cross_entropy"}, "data": {"labelled_only": True}}


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits, two CPU cores, about two minutes. `fashion_mnist`: its images, five minutes.

  `paper`: ViT-L/14 into ViT-B/16 on EuroSAT at 224 pixels, 20 epochs, from checkpoints in models/
  and images that were written as ArrayRecord to data/eurosat. The teacher is CLIP as it is: its own
  prompts (PromptSRC) are not learnt here.
  """
  if variant == "paper":
    return _paper()
  if variant not in ("small", "fashion_mnist"):
    raise ValueError(
      f"variant {variant!r} does not exist; what exists: small, fashion_mnist, paper"
    )
  small = variant == "small"
  config = open_vocabulary.get_config("digits" if small else "fashion_mnist")
  image_model = {
    "name": "vit",
    "patch": 2 if small else 7,
    "width": 32,
    "depth": 2,
    "pool": "cls",
    "prompts": 4,
    "prompt_depth": 2,
  }
  config.student = {
    "name": "open_vocabulary",
    "image_model": image_model,
    "embedding": open_vocabulary.EMBEDDING,
    "features": 32,
    "temperature": 0.07,
  }
  config.total_steps = 300 if small else 600
  config.objective = {"name": "prompt_kd", "kd_weight": 10.0}  # V = 10: the weight of an image is 1
  config.eval.every = config.total_steps
  config.stages = _stages(config, {"objective": config.objective.to_dict()})
  config.baseline = {"stages": _stages(config, TOLD)}
  config.compare.names = {"baseline": "student_labels", "method": "student_prompt_kd"}
  where = "digits" if small else "Fashion-MNIST"
  config.compare.title = f"PromptKD on {where}, five of ten classes held out"
  return config


def _stages(config: ml_collections.ConfigDict, second: dict) -> tuple[dict, dict]:
  student = config.student.to_dict()
  first = TOLD | {"name": "base_classes"}
  prompts = {"name": "prompts", "student": student | {"trained": "prompts"}}
  return first, prompts | {"optimizer": {"groups": GROUPS}} | second


def _paper() -> ml_collections.ConfigDict:
  config = open_vocabulary.pretrained("clip-vit-large-patch14")
  config.student = {
    "name": "open_vocabulary",
    "image_model": {
      "name": "clip_image_tower",
      "path": "models/clip-vit-base-patch16",
      "prompts": 4,
      "prompt_depth": 9,
    },
    "embedding": 768,
    "features": 512,
    "temperature": 0.01,
    "trained": "prompts",
  }
  config.objective = {"name": "prompt_kd", "kd_weight": 1000.0}
  config.batch_size = 8
  config.total_steps = 20 * 13_500 // 8  # 20 epochs of EuroSAT's training images
  config.optimizer = {"name": "sgd", "learning_rate": 0.005, "groups": GROUPS}
  config.optimizer.weight_decay = 5e-4
  config.baseline = TOLD
  config.compare.title = "PromptKD on EuroSAT: ViT-L/14 into ViT-B/16"
  return config
