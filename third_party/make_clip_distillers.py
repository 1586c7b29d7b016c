"""Makes `reference/clip_distillers.npz` with the official code of two distillers of CLIP.

  python make_clip_distillers.py --promptkd=A --vlm=B --out=reference

A and B are checkouts of zhengli97/PromptKD and xuanlinli17/large_vlm_distillation_ood. Needs
PyTorch, which kdjax does not: it is run by hand and never by the tests. README.md beside this file
says what each array is.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

SEED = 31
ARRAYS: dict[str, np.ndarray] = {}
Space = types.SimpleNamespace


def keep(**arrays) -> None:
  for name, value in arrays.items():
    assert name not in ARRAYS, name
    value = value.detach() if isinstance(value, torch.Tensor) else value
    value = np.asarray(value)
    ARRAYS[name] = value.astype(np.int32 if value.dtype.kind == "i" else np.float32)


def draw(rng, *shape, scale: float = 1.0) -> torch.Tensor:
  return torch.tensor((scale * rng.standard_normal(shape)).astype(np.float32))


def stand_in(name: str, **attributes) -> None:
  """A module that the official files import and the functions that run do not need."""
  module = types.ModuleType(name)
  module.__path__ = []
  for key, value in attributes.items():
    setattr(module, key, value)
  sys.modules[name] = module
  parent, _, last = name.rpartition(".")
  if parent:
    setattr(sys.modules[parent], last, module)


def load(name: str, path: Path):
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def image_tower(root: Path, rng) -> None:
  """The image tower with prompts of three depths."""
  stand_in("clip")
  module = load("clip.model", root / "clip" / "model.py")
  image = draw(rng, 2, 3, 8, 8)
  keep(image=image.permute(0, 2, 3, 1))
  for depth in (1, 2, 3):
    design = {"trainer": "IVLP", "vision_depth": depth, "vision_ctx": 2}
    tower = module.VisionTransformer(8, 4, 12, 3, 2, 10, design)
    for name, value in tower.named_parameters():
      fresh = draw(rng, *value.shape, scale=0.3)
      # The official code rounds prompts to half precision where it uses them.
      value.data = fresh.half().float() if "VPT" in name else fresh
    out = tower(image)
    keep(**{f"tower{depth}": out})
    (grad,) = torch.autograd.grad(out.square().sum(), [tower.VPT])
    keep(**{f"tower{depth}_prompt_grad": grad})
    for name, value in tower.state_dict().items():
      keep(**{f"tower{depth}/{name}": value})


def prompt_kd(root: Path, rng) -> None:
  """The projector in training, and `forward_backward`, which makes loss and gradients."""

  def register():
    return lambda cls: cls

  stand_in("dassl")
  stand_in("dassl.engine", TRAINER_REGISTRY=Space(register=register), TrainerX=object)
  stand_in("dassl.utils", load_pretrained_weights=None, load_checkpoint=None)
  stand_in("dassl.optim", build_optimizer=None, build_lr_scheduler=None)
  sys.modules["clip"].clip = None
  stand_in("clip.simple_tokenizer", SimpleTokenizer=lambda: None)
  stand_in("trainers")
  stand_in("trainers.imagenet_templates", IMAGENET_TEMPLATES=None)
  stand_in("tqdm", tqdm=None)
  module = load("trainers.promptkd", root / "trainers" / "promptkd.py")

  projector = module.Feature_Trans_Module_two_layer(6, 10).train()
  for value in projector.parameters():
    value.data = draw(rng, *value.shape, scale=0.5)
  given = draw(rng, 5, 6).requires_grad_()
  out = projector(given)
  (grad,) = torch.autograd.grad(out.square().sum(), [given])
  keep(projector_in=given, projector_out=out, projector_grad=grad)
  keep(**{f"projector/{name}": value for name, value in projector.state_dict().items()})

  features, told = draw(rng, 5, 10).requires_grad_(), draw(rng, 5, 10)
  unit = nn.functional.normalize(told, dim=-1)
  texts = nn.functional.normalize(draw(rng, 7, 10), dim=-1)
  keep(pkd_features=features, pkd_told=told, pkd_texts=texts)
  for name, temperature, weight in (("pkd", 1.0, 1000.0), ("pkd_soft", 2.0, 200.0)):
    features.grad = None
    trainer = Space(
      parse_batch_train=lambda batch: (None, None),
      model_teacher=lambda image: (unit, texts, 20.0 * unit @ texts.t()),
      model=lambda image, label: (nn.functional.normalize(features, dim=-1), torch.tensor(15.0)),
      optim=Space(zero_grad=lambda: None, step=lambda: None),
      scaler=None,
      cfg=Space(TRAINER=Space(PROMPTKD=Space(PREC="fp32", KD_WEIGHT=weight))),
      temperature=temperature,
      batch_idx=0,
      num_batches=9,
    )
    loss = module.PromptKD.forward_backward(trainer, None)["loss"]
    keep(**{name: loss, f"{name}_grad": features.grad.clone()})


class Bar:
  suffix, elapsed_td, eta_td = "", 0, 0

  def __init__(self, *args, **kwargs):
    pass

  next = finish = lambda self: None


def vlm_module(root: Path):
  """`main_experiments.py` on the CPU, without its data."""
  for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
    stand_in(name)
  stand_in("torchvision.models")
  stand_in("models")
  stand_in("models.imagenet")
  stand_in("custom_data_loader", CLIPImageDataset=None)
  meter = load("official_misc", root / "utils" / "misc.py").AverageMeter
  accuracy = load("official_eval", root / "utils" / "eval.py").accuracy
  unused = dict.fromkeys(("Logger", "mkdir_p", "savefig"))
  stand_in("utils", Bar=Bar, AverageMeter=meter, accuracy=accuracy, **unused)
  torch.cuda.is_available = lambda: True
  torch.cuda.manual_seed_all = lambda seed: None
  torch.autograd.Variable = lambda x, **kwargs: x
  with mock.patch.object(sys, "argv", ["main", "--arch=net", "--manualSeed=0"]):
    sys.modules["torchvision.models"].net = stand_in
    sys.modules["models.imagenet"].net = lambda: None
    module = load("official_vlm", root / "main_experiments.py")
  module.cuda_device = "cpu"
  return module


class Given(nn.Module):
  """A model whose output is its parameter."""

  def __init__(self, value: torch.Tensor):
    super().__init__()
    self.value = nn.Parameter(value.clone())

  def forward(self, inputs):
    return self.value


def vlm(root: Path, rng) -> None:
  module = vlm_module(root)
  student, teacher, texts = draw(rng, 8, 10), draw(rng, 8, 10), draw(rng, 6, 10)
  captions = draw(rng, 8, 10)
  labels = torch.tensor(rng.integers(0, 6, 8))
  # Some images are near their texts, so that the filter keeps some.
  teacher[::2] += 2 * texts[labels[::2]]
  keep(vlm_student=student, vlm_teacher=teacher, vlm_texts=texts, vlm_labels=labels)
  keep(vlm_captions=captions)
  only = {"clip_align_image_classification": True}
  align = only | {"clip_align_text_only_proximal": True}
  cases = {
    "cls": only,
    "mse": {"clip_align_image_mse": True},
    "contrast": {
      "clip_align_image_contrastive": True,
      "clip_align_image_contrastive_mode": "bidirectional",
    },
    "contrast_single": {"clip_align_image_contrastive": True},
    "align": align | {"clip_align_proximal_text_num": 256},
    "align_top3": align | {"clip_align_proximal_text_num": 3},
    "align_filtered": align
    | {"clip_align_proximal_text_num": 256, "clip_filter_out_wrong_alignment": True},
    "cls_captions": only | {"clip_align_image_aux_caption": True},
  }
  cases["all"] = (
    only
    | cases["mse"]
    | cases["contrast"]
    | {"clip_align_proximal_text_num": 256, "clip_filter_out_wrong_alignment": True}
  )
  for name, options in cases.items():
    model = Given(student)
    told = (teacher, captions) if "caption" in name else teacher
    batch = [((torch.zeros(8), told), labels)]
    value, _ = module.train(
      batch,
      model,
      nn.CrossEntropyLoss(),
      Space(zero_grad=lambda: None, step=lambda: None),  # the gradient alone is wanted
      0,
      1,
      False,
      lambda x: x,
      texts,
      clip_model=object(),
      **options,
    )
    keep(**{f"vlm_{name}": value, f"vlm_{name}_grad": model.value.grad})

  support = nn.functional.normalize(draw(rng, 6, 2, 10), dim=-1)
  loss, accuracy = module.test(
    [(torch.zeros(8), labels)],
    Given(student),
    nn.CrossEntropyLoss(),
    0,
    False,
    lambda x: x,
    texts,
    clip_model=object(),
    few_shot_features=support,
    support_set_idx=torch.tensor([], dtype=torch.long),
  )
  keep(vlm_support=support, vlm_retrieved_loss=loss, vlm_retrieved_accuracy=accuracy / 100)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ("promptkd", "vlm", "out"):
    parser.add_argument(f"--{name}", type=Path, required=True)
  options = parser.parse_args()
  torch.manual_seed(0)
  image_tower(options.promptkd, np.random.default_rng((SEED, 0)))
  prompt_kd(options.promptkd, np.random.default_rng((SEED, 1)))
  vlm(options.vlm, np.random.default_rng((SEED, 2)))
  np.savez_compressed(options.out / "clip_distillers.npz", **ARRAYS)


if __name__ == "__main__":
  main()
