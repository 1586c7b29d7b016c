"""Makes `reference/vision_distillers.npz` with the official code of the classic vision distillers.

  python make_vision_distillers.py --mdistiller=A --ctkd=B --mlld=C --out=reference

A, B and C are checkouts of megvii-research/mdistiller, zhengli97/CTKD and
Jin-Ying/Multi-Level-Logit-Distillation. Needs PyTorch and SciPy, which kdjax does not: it is run by
hand and never by the tests. README.md beside this file says what each array is.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

SEED = 22
ARRAYS: dict[str, np.ndarray] = {}
Space = types.SimpleNamespace


def package(name: str, folder: Path):
  """Makes the files of a folder importable without running its `__init__`."""
  module = types.ModuleType(name)
  module.__path__ = [str(folder)]
  sys.modules[name] = module
  return lambda part: importlib.import_module(f"{name}.{part}")


def last(x) -> np.ndarray:
  """Maps [B, C, H, W] with the channel last; other arrays as they are."""
  x = np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float32)
  return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def keep(**arrays) -> None:
  for name, value in arrays.items():
    assert name not in ARRAYS, name
    ARRAYS[name] = last(value)


def kernel(weight, *, transposed: bool = False) -> np.ndarray:
  """A convolution's weight as [height, width, in, out]."""
  weight = weight.detach().numpy()
  return weight.transpose(2, 3, 0, 1) if transposed else weight.transpose(2, 3, 1, 0)


def draw(rng, *shape, scale: float = 1.0) -> torch.Tensor:
  x = (scale * rng.standard_normal(shape)).astype(np.float32)
  return torch.tensor(x)


def measured(name: str, loss, *inputs: tuple[str, torch.Tensor]) -> None:
  """Stores a loss and its gradients by the named inputs."""
  value = loss()
  grads = torch.autograd.grad(value.sum(), [x for _, x in inputs])
  keep(**{name: value.detach().reshape(())})
  for (key, _), grad in zip(inputs, grads, strict=True):
    ARRAYS[f"{name}_{key}"] = last(grad)


def perturbed(module: nn.Module, rng) -> nn.Module:
  """Weights from the generator: 0.3 normal, and 1 + that for the scale of a normalisation."""
  for part in module.modules():
    for name, p in part.named_parameters(recurse=False):
      base = 1.0 if isinstance(part, nn.BatchNorm2d) and name == "weight" else 0.0
      p.data = base + draw(rng, *p.shape, scale=0.3)
  return module.train()


class Hands(nn.Module):
  """A model that hands over what it was given."""

  def __init__(self, *outputs, **attributes):
    super().__init__()
    self.outputs = list(outputs)
    self.attributes = attributes

  def forward(self, image):
    return self.outputs.pop(0)

  def get_stage_channels(self):
    return self.attributes["channels"]

  def get_bn_before_relu(self):
    return self.attributes["norms"]


def plain_losses(part, rng) -> None:
  """The losses without parameters: maps of equal and of different size, and vectors."""
  student = draw(rng, 6, 5, 8, 8).requires_grad_()
  small = draw(rng, 6, 3, 4, 4).requires_grad_()
  teacher, same = draw(rng, 6, 7, 8, 8), draw(rng, 6, 5, 8, 8)
  vectors, told = draw(rng, 6, 9).requires_grad_(), draw(rng, 6, 12)
  keep(student=student, small=small, teacher=teacher, same=same, vectors=vectors, told=told)
  at, nst, sp = part("AT"), part("NST"), part("SP")
  for size, x in (("student", student), ("small", small)):
    own = ("grad", x)
    measured(f"at_{size}", lambda x=x: at.single_stage_at_loss(x, teacher, 2), own)
    measured(f"nst_{size}", lambda x=x: nst.single_stage_nst_loss(x, teacher), own)
    measured(f"sp_{size}", lambda x=x: sp.similarity_loss(x, teacher), own)
  measured("at4", lambda: at.single_stage_at_loss(student, teacher, 4), ("grad", student))
  rkd, grad = part("RKD").rkd_loss, ("grad", vectors)
  for name, weights in (("rkd", (25, 50)), ("distance", (1, 0)), ("angle", (0, 1))):
    measured(
      name,
      lambda w=weights: rkd(vectors, told, distance_weight=w[0], angle_weight=w[1]),
      grad,
    )
  measured("pkt", lambda: part("PKT").pkt_loss(vectors.clone(), told.clone()), grad)
  hcl = part("ReviewKD").hcl_loss
  measured("hcl", lambda: hcl([student], [same]), ("grad", student))
  seven = [x[..., :7, :7] for x in (student, same)]
  measured("hcl7", lambda: hcl([seven[0]], [seven[1]]), ("grad", student))
  one = [x[..., :1, :1] for x in (student, same)]
  measured("hcl1", lambda: hcl([one[0]], [one[1]]), ("grad", student))
  margin = -torch.abs(draw(rng, 5))
  keep(margin=margin)
  measured(
    "partial_l2",
    lambda: part("OFD").feat_loss(student, same, margin.reshape(1, 5, 1, 1)),
    ("grad", student),
  )


def fitnet(part, rng) -> None:
  sizes = {"down": (8, 4), "up": (4, 8), "valid": (6, 4), "equal": (4, 4)}
  for name, (s, t) in sizes.items():
    x, y = draw(rng, 4, 3, s, s).requires_grad_(), draw(rng, 4, 5, t, t)
    module = perturbed(part("_common").ConvReg(x.shape, y.shape), rng)
    keep(**{f"fitnet_{name}_student": x, f"fitnet_{name}_teacher": y})
    ARRAYS[f"fitnet_{name}_kernel"] = kernel(module.conv.weight, transposed=name == "up")
    keep(**{f"fitnet_{name}_bias": module.conv.bias, f"fitnet_{name}_norm_scale": module.bn.weight})
    keep(**{f"fitnet_{name}_norm_bias": module.bn.bias})
    inputs = ("grad", x), ("norm_scale_grad", module.bn.weight)
    measured(f"fitnet_{name}", lambda m=module, x=x, y=y: nn.functional.mse_loss(m(x), y), *inputs)


def variational(part, rng) -> None:
  x, y = draw(rng, 4, 3, 8, 8).requires_grad_(), draw(rng, 4, 5, 4, 4)
  vid = part("VID")
  layers = [vid.conv1x1(a, b) for a, b in ((3, 5), (5, 5), (5, 5))]
  module = perturbed(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), rng)
  scale = draw(rng, 5).requires_grad_()
  keep(vid_student=x, vid_teacher=y, vid_scale=scale)
  for i, layer in enumerate(layers):
    ARRAYS[f"vid_kernel{i}"] = kernel(layer.weight)[0, 0]
  inputs = ("grad", x), ("scale_grad", scale)
  measured("vid", lambda: vid.vid_loss(module, scale, x, y), *inputs)


def contrastive(part, rng) -> None:
  """Two steps in a row, of 4 of 20 examples and 6 negatives each."""
  examples, negatives = 20, 6
  cfg = Space(
    CRD=Space(
      LOSS=Space(CE_WEIGHT=1.0, FEAT_WEIGHT=0.8),
      FEAT=Space(DIM=8, STUDENT_DIM=5, TEACHER_DIM=7),
      NCE=Space(K=negatives, MOMENTUM=0.5, TEMPERATURE=0.07),
    )
  )
  crd = part("CRD").CRD(nn.Module(), nn.Module(), cfg, examples)
  for side in ("s", "t"):
    linear = perturbed(getattr(crd, f"embed_{side}"), rng).linear
    ARRAYS[f"crd_{side}_kernel"] = linear.weight.detach().numpy().T
    keep(**{f"crd_{side}_bias": linear.bias})
  for name in ("memory_v1", "memory_v2"):
    getattr(crd.contrast, name).copy_(draw(rng, examples, 8, scale=0.35))
    keep(**{f"crd_{name}": getattr(crd.contrast, name).clone()})
  for step in range(2):
    f_s, f_t = draw(rng, 4, 5).requires_grad_(), draw(rng, 4, 7)
    index = torch.tensor(rng.permutation(examples)[:4])
    drawn = torch.tensor(rng.integers(0, examples, (4, negatives)))
    candidates = torch.cat([index[:, None], drawn], 1)
    keep(**{f"crd{step}_student": f_s, f"crd{step}_teacher": f_t})
    ARRAYS[f"crd{step}_candidates"] = candidates.numpy().astype(np.int32)
    inputs = ("grad", f_s), ("t_bias_grad", crd.embed_t.linear.bias)
    given = f_s, f_t, index, candidates
    measured(f"crd{step}", lambda given=given: crd.crd_loss(*given), *inputs)
    keep(**{f"crd{step}_z": crd.contrast.params[2:4].clone()})
    for name in ("memory_v1", "memory_v2"):
      keep(**{f"crd{step}_{name}": getattr(crd.contrast, name).clone()})


def overhaul(part, rng) -> None:
  norms = [nn.BatchNorm2d(c) for c in (5, 6)]
  for norm in norms:
    norm.weight.data, norm.bias.data = draw(rng, norm.num_features), draw(rng, norm.num_features)
  norms[0].bias.data[0] = 5 * norms[0].weight.data[0].abs()  # nearly never negative
  cfg = Space(OFD=Space(LOSS=Space(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0), CONNECTOR=Space(KERNEL_SIZE=1)))
  ofd = part("OFD").OFD(Hands(channels=[2, 3, 4]), Hands(channels=[4, 5, 6], norms=norms), cfg)
  xs = [draw(rng, 4, c, s, s).requires_grad_() for c, s in ((3, 4), (4, 2))]
  ys = [draw(rng, 4, c, s, s) for c, s in ((5, 8), (6, 2))]
  perturbed(ofd.connectors, rng)
  for i, connector in enumerate(ofd.connectors.connectors):
    keep(**{f"ofd_student{i}": xs[i], f"ofd_teacher{i}": ys[i]})
    keep(**{f"ofd_scale{i}": norms[i].weight, f"ofd_bias{i}": norms[i].bias})
    ARRAYS[f"ofd_margin{i}"] = ofd.margins[i].numpy().reshape(-1)
    ARRAYS[f"ofd_kernel{i}"] = kernel(connector[0].weight)
    keep(**{f"ofd_norm_scale{i}": connector[1].weight, f"ofd_norm_bias{i}": connector[1].bias})
  measured("ofd", lambda: ofd.ofd_loss(xs, ys), *((f"grad{i}", x) for i, x in enumerate(xs)))


def review(part, rng) -> None:
  cfg = Space(
    REVIEWKD=Space(
      SHAPES=[1, 2, 4, 8],
      OUT_SHAPES=[1, 2, 4, 8],
      IN_CHANNELS=[3, 4, 6, 6],
      OUT_CHANNELS=[5, 7, 8, 8],
      CE_WEIGHT=1.0,
      REVIEWKD_WEIGHT=1.0,
      WARMUP_EPOCHS=20,
      STU_PREACT=False,
      MAX_MID_CHANNEL=512,
    )
  )
  shapes = (3, 8), (4, 4), (6, 2)
  xs = [draw(rng, 4, c, s, s).requires_grad_() for c, s in shapes]
  ys = [draw(rng, 4, c, s, s) for c, s in ((5, 8), (7, 4), (8, 2))]
  pooled, told = draw(rng, 4, 6).requires_grad_(), draw(rng, 4, 8)
  stem = torch.zeros(4, 1, 8, 8)
  logits, labels = draw(rng, 4, 3), torch.zeros(4, dtype=torch.long)
  student = Hands((logits, {"feats": [stem, *xs], "pooled_feat": pooled}))
  teacher = Hands((logits, {"preact_feats": [stem, *ys], "pooled_feat": told}))
  module = part("ReviewKD").ReviewKD(student, teacher, cfg)
  perturbed(module.abfs, rng)
  keep(review_pooled=pooled, review_told=told)
  for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
    keep(**{f"review_student{i}": x, f"review_teacher{i}": y})
  for i, abf in enumerate(module.abfs):  # from the deepest
    ARRAYS[f"review_in{i}"] = kernel(abf.conv1[0].weight)
    ARRAYS[f"review_out{i}"] = kernel(abf.conv2[0].weight)
    for side, norm in (("in", abf.conv1[1]), ("out", abf.conv2[1])):
      keep(**{f"review_{side}{i}_scale": norm.weight, f"review_{side}{i}_bias": norm.bias})
    if abf.att_conv is not None:
      ARRAYS[f"review_fuse{i}"] = kernel(abf.att_conv[0].weight)
      keep(**{f"review_fuse{i}_bias": abf.att_conv[0].bias})
  inputs = [(f"grad{i}", x) for i, x in enumerate(xs)] + [("pooled_grad", pooled)]
  measured("review", lambda: module(image=None, target=labels, epoch=20)[1]["loss_kd"], *inputs)


def curriculum(models: Path, zoo: Path, rng) -> None:
  temperature = package("ctkd_models", models)("temp_global").Global_T()
  loss = package("ctkd_zoo", zoo)("KD").DistillKL()
  student, teacher = draw(rng, 6, 10, scale=2).requires_grad_(), draw(rng, 6, 10, scale=2)
  keep(ctkd_student=student, ctkd_teacher=teacher)
  theta = temperature.global_T

  def value(strength):
    tau = 1 + 20 * torch.sigmoid(temperature(teacher, student, strength))
    return loss(student, teacher, tau)

  for name, strength in (("ctkd", -1.0), ("ctkd_half", -0.5)):
    inputs = ("grad", student), ("theta_grad", theta)
    measured(name, lambda s=strength: value(s), *inputs)


def multi_level(part, rng) -> None:
  module = part("KD_ours")
  weak, strong = (draw(rng, 8, 10, scale=2).requires_grad_() for _ in range(2))
  told = [draw(rng, 8, 10, scale=2) for _ in range(2)]
  labels = torch.tensor(rng.integers(0, 10, 8))
  keep(mlld_weak=weak, mlld_strong=strong, mlld_told_weak=told[0], mlld_told_strong=told[1])
  ARRAYS["mlld_labels"] = labels.numpy().astype(np.int32)
  for name in ("kd_loss", "cc_loss", "bc_loss"):
    for tau in (2.0, 4.0):
      function = getattr(module, name)
      key = f"mlld_{name}_t{tau:g}"
      measured(key, lambda f=function, t=tau: f(weak, told[0], t), ("grad", weak))
  cfg = Space(KD=Space(TEMPERATURE=4.0, LOSS=Space(CE_WEIGHT=0.1, KD_WEIGHT=0.9)))
  for key in ("ce", "kd", "cc", "bc"):
    student, teacher = (Hands(*((x, None) for x in xs)) for xs in ((weak, strong), told))
    distiller = module.KD_ours(student, teacher, cfg)

    def value(d=distiller, k=key):
      return d.forward_train(None, None, labels)[1][f"loss_{k}"]

    measured(f"mlld_{key}", value, ("grad", weak))


def main() -> None:
  parser = argparse.ArgumentParser()
  for name in ("mdistiller", "ctkd", "mlld", "out"):
    parser.add_argument(f"--{name}", type=Path, required=True)
  options = parser.parse_args()
  for kind in (torch.Tensor, nn.Module):
    kind.cuda = lambda self, *args, **kwargs: self
  # Two unused imports of the official file, the one of which opens a window.
  sys.modules["turtle"] = types.ModuleType("turtle")
  sys.modules["turtle"].st = None
  torch.manual_seed(0)
  part = package("official", options.mdistiller / "mdistiller" / "distillers")
  makers = (plain_losses, fitnet, variational, contrastive, overhaul, review)
  for number, make in enumerate(makers):
    make(part, np.random.default_rng((SEED, number)))
  curriculum(
    options.ctkd / "models", options.ctkd / "distiller_zoo", np.random.default_rng((SEED, 6))
  )
  levels = package("levels", options.mlld / "mdistiller" / "distillers")
  multi_level(levels, np.random.default_rng((SEED, 7)))
  np.savez_compressed(options.out / "vision_distillers.npz", **ARRAYS)


if __name__ == "__main__":
  main()
