"""Makes `reference/small_networks.npz`: what a WideResNet and two MobileNets compute in PyTorch.

  python make_small_networks.py --mdistiller=REPOSITORY --out=reference/small_networks.npz

Needs PyTorch and transformers, which kdjax does not: it is run by hand and never by the tests.
README.md beside this file has the versions that made the file in the repository. Weights are drawn
by NumPy in the order of their sorted names, so that only names and shapes are stored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers as hf

LABELS = 5


def drawn(names: list[str], shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
  """The weights and statistics of a network, by name."""
  rng, out = np.random.default_rng(40), {}
  for name, shape in zip(names, shapes, strict=True):
    values = rng.standard_normal(shape)
    if name.endswith("running_var"):
      values = 0.5 + np.abs(values)
    elif len(shape) == 1:
      values = 0.2 * values + name.endswith("weight")
    else:
      values = values * (2 / np.prod(shape[1:])) ** 0.5
    out[name] = values.astype(np.float32)
  return out


def networks(repository: Path) -> dict[str, torch.nn.Module]:
  scope: dict = {"__name__": "wrn"}
  exec((repository / "mdistiller" / "models" / "cifar" / "wrn.py").read_text(), scope)
  shared = {"num_labels": LABELS, "image_size": 32, "tf_padding": False, "layer_norm_eps": 1e-5}
  shared["classifier_dropout_prob"] = 0.0
  one = hf.MobileNetV1Config(**shared, depth_multiplier=0.125)
  # Its stem has no residual connection, which the paper's rule gives where channels are equal: at a
  # width of 0.5 they are not.
  two = hf.MobileNetV2Config(
    **shared,
    depth_multiplier=0.5,
    depth_divisible_by=1,
    first_layer_is_expansion=True,
    finegrained_output=True,
  )
  return {
    "wide_resnet": scope["WideResNet"](depth=10, num_classes=LABELS, widen_factor=2),
    "mobilenet_v1": hf.MobileNetV1ForImageClassification(one),
    "mobilenet_v2": hf.MobileNetV2ForImageClassification(two),
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--mdistiller", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  given = parser.parse_args()
  torch.set_num_threads(1)
  image = np.random.default_rng(41).standard_normal((2, 32, 32, 3)).astype(np.float32)
  out: dict[str, np.ndarray] = {"image": image}
  channels_first = torch.tensor(image).permute(0, 3, 1, 2)
  for network, model in networks(given.mdistiller).items():
    state = {k: v for k, v in model.state_dict().items() if v.ndim}
    names = sorted(state)
    shapes = [tuple(state[name].shape) for name in names]
    weights = {k: torch.tensor(v) for k, v in drawn(names, shapes).items()}
    model.load_state_dict(weights, strict=False)
    model.eval()
    with torch.no_grad():
      if network == "wide_resnet":
        logits, parts = model(channels_first)
        for kind in ("feats", "preact_feats"):
          for i in (1, 2, 3):
            value = parts[kind][i].permute(0, 2, 3, 1).numpy()
            out[f"{network}:{kind}{i}"] = value.mean((1, 2))
      else:
        logits = model(channels_first).logits
    out[f"{network}:logits"] = logits.numpy()
    out[f"{network}:names"] = np.array(names)
    out[f"{network}:shapes"] = np.array([",".join(map(str, shape)) for shape in shapes])
  np.savez_compressed(given.out, **out)


if __name__ == "__main__":
  main()
