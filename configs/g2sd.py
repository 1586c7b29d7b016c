"""G2SD: a small masked autoencoder learns from a large one's decoder, then its task from a teacher.

python -m launch.train --config=configs/g2sd.py --workdir=runs/g2sd
python -m launch.compare --config=configs/g2sd.py --seeds=3 --workdir=runs/g2sd_3

Three runs: a large autoencoder learns to rebuild masked images, a small one to predict what is in
its decoder (the generic stage), and then, as a classifier with a distillation token, labels and the
likeliest class of a large classifier (the specific stage). The baseline is the specific stage alone
for as many steps as both of the student's stages have.
"""

import ml_collections

from configs import base

MASK = ({"name": "mask_seed"},)


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: digits as 16 patches, a tenth of the labels. `paper`: ViT-B into ViT-S on ImageNet.

  Weights that MAE gives are not converted: `paper` pre-trains its large autoencoder, where the
  official recipe reads one, and `config.teacher.checkpoint` is to name a run of the same model
  fine-tuned on labels. In `small` that classifier is trained on all labels without pre-training.
  """
  config = base.get_config()
  small = variant == "small"
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  model = {"name": "masked_autoencoder"}
  if small:
    steps = {"pretrained": 600, "generic": 400, "specific": 200}
    large = {"width": 64, "depth": 4, "heads": 4, "decoder_width": 32, "decoder_depth": 4}
    own = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 2}
    block, plain, mask = 2, ({"name": "shift", "pixels": 1},), MASK
    config.batch_size = 64
    config.data.label_fraction = 0.1
    config.optimizer = {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine"}
    config.optimizer.update({"warmup_steps": 20, "weight_decay": 0.05, "clip_norm": 3.0})
    config.teacher.train = {
      "total_steps": 400,
      "objective": {"name": "cross_entropy"},
      "data": {"label_fraction": 1.0},
    }
    config.eval.every = config.checkpoint.every = 100
  else:
    epoch = 1_281_167 // 4096
    steps = {"pretrained": 1600 * epoch, "generic": 300 * epoch, "specific": 200 * epoch}
    shared = {"patch": 16}
    large = shared | {"width": 768, "depth": 12, "heads": 12}
    large |= {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
    own = shared | {"width": 384, "depth": 12, "heads": 6}
    own |= {"decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8}
    block = 4
    crop = ({"name": "random_resized_crop"}, {"name": "flip"})
    plain = (*crop, {"name": "rand_augment"}, {"name": "random_erasing"})
    config.batch_size = 4096
    config.data.update({"name": "tfds_images", "dataset": "imagenet2012", "size": 224})
    config.data.test_split = "validation"
    # Before masking the official recipe crops a fifth or more.
    mask = ({"name": "random_resized_crop", "area": (0.2, 1.0)}, {"name": "flip"}, *MASK)
    config.optimizer = {"name": "adamw", "learning_rate": 2.4e-3, "schedule": "cosine"}
    config.optimizer.update({"warmup_steps": 10 * epoch, "weight_decay": 0.05, "clip_norm": 3.0})
    config.eval.every = config.checkpoint.every = epoch
  config.teacher.model = model | large
  config.student = model | own | {"distilled": True}
  config.data.augment = plain
  config.total_steps = steps["specific"]
  config.objective = {"name": "distillation_token"}
  masked = {"data": {"augment": mask}}
  config.stages = (
    {"name": "pretrained", "gives": "teacher", "student": model | large, **masked}
    | {"total_steps": steps["pretrained"], "objective": {"name": "masked_reconstruction"}},
    {"name": "generic", "total_steps": steps["generic"], **masked}
    | {"objective": {"name": "g2sd", "teacher_block": block}},
    {"name": "specific"},
  )
  total = steps["generic"] + steps["specific"]
  config.baseline = {"stages": None, "total_steps": total}
  config.compare.names = {"baseline": "student_specific", "method": "student_both_stages"}
  config.compare.title = "G2SD's two stages against the specific one alone, a tenth of the labels"
  config.compare.vectorize = False
  return config
