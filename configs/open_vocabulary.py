"""What the experiments on named classes share: a CLIP that knows all of them, half held out.

The texts are words ("a photo of an ankle boot."), read byte by byte by a small text tower that is
trained with the images: no network and no checkpoint is needed.
"""

from pathlib import Path

import ml_collections

from configs import base

TOKENIZER = str(Path(__file__).parent / "tokenizers" / "bytes")
DIGITS = tuple(
  f"the digit {word}"
  for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
CLOTHING = (
  "a t-shirt",
  "a pair of trousers",
  "a pullover",
  "a dress",
  "a coat",
  "a sandal",
  "a shirt",
  "a sneaker",
  "a bag",
  "an ankle boot",
)
EMBEDDING = 64


def get_config(images: str = "digits") -> ml_collections.ConfigDict:
  """A teacher on `digits` or `fashion_mnist`; the experiment gives student and objective."""
  names = {"digits": DIGITS, "fashion_mnist": CLOTHING}[images]
  config = base.get_config()
  config.data = {
    **config.data.to_dict(),
    "name": "named_classes",
    "images": images,
    "names": names,
    "novel": names[1::2],
    "told": False,
    "template": "a photo of {}.",
    "tokenizer": TOKENIZER,
  }
  patch = 2 if images == "digits" else 7
  config.teacher.model = {
    "name": "clip",
    "embedding": EMBEDDING,
    "patch": patch,
    "width": 64,
    "depth": 3,
    "text_width": 32,
    "text_depth": 2,
  }
  config.teacher.train = {
    "total_steps": 600 if images == "digits" else 1200,
    "objective": {"name": "image_text_contrastive"},
    "data": {"told": True},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 50},
    "eval": {"best_metric": "accuracy"},
  }
  if images == "digits":
    config.teacher.train.data.augment = ({"name": "shift", "pixels": 1},)
  config.batch_size = 64
  config.optimizer.weight_decay = 1e-4
  config.eval.best_metric = "harmonic_mean"
  return config


EUROSAT = (
  "annual crop land",
  "forest",
  "herbaceous vegetation land",
  "highway or road",
  "industrial buildings",
  "pasture land",
  "permanent crop land",
  "residential buildings",
  "river",
  "sea or lake",
)


def pretrained(teacher: str) -> ml_collections.ConfigDict:
  """What the `paper` variants share: CLIP in models/TEACHER, EuroSAT in data/eurosat."""
  config = get_config()
  path = f"models/{teacher}"
  config.data = {
    **config.data.to_dict(),
    "images": {"name": "array_record_images", "path": "data/eurosat", "num_classes": 10},
    "names": EUROSAT,
    "novel": EUROSAT[5:],
    "template": "a centered satellite photo of {}.",
    "tokenizer": path,
    "augment": ({"name": "shift", "pixels": 16}, {"name": "flip"}),
  }
  config.teacher.model = {"name": "pretrained_clip", "path": path}
  config.checkpoint.every = config.eval.every = 5000
  return config
