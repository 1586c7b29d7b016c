"""Makes `reference/corruptions.npz`: images damaged by the functions of hendrycks/robustness.

  python make_corruptions.py --robustness=REPOSITORY --out=reference/corruptions.npz

Needs scikit-image, OpenCV and Pillow, of which kdjax needs none: it is run by hand and never by the
tests. README.md beside this file has the versions that made the file in the repository. The
functions are cut out of their files, whose other imports (ImageMagick) they do not use; two names
of scikit-image that changed since are set again: `gaussian`'s `multichannel`, and the generator of
`random_noise`.
"""

from __future__ import annotations

import argparse
import ast
import types
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import skimage
import skimage.color
import skimage.filters
import skimage.util
from PIL import Image

EXACT = ("gaussian_blur", "defocus_blur", "contrast", "brightness")
DRAWN = ("gaussian_noise", "shot_noise", "speckle_noise", "impulse_noise")
SEED = 40


def official(path: Path) -> dict:
  """The namespace of the functions that are wanted."""

  def gaussian(image, sigma, multichannel):
    return skimage.filters.gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None)

  def random_noise(image, mode, amount):
    return skimage.util.random_noise(image, mode=mode, amount=amount, rng=SEED)

  util = types.SimpleNamespace(random_noise=random_noise)
  scope = {"np": np, "cv2": cv2, "PILImage": Image, "gaussian": gaussian, "BytesIO": BytesIO}
  scope["sk"] = types.SimpleNamespace(util=util, color=skimage.color)
  wanted = {*EXACT, *DRAWN, "pixelate", "disk"}
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef) and node.name in wanted:
      exec(ast.unparse(node), scope)
  return scope


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--robustness", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  rng = np.random.default_rng(SEED)
  folder = flags.robustness / "ImageNet-C" / "create_c"
  small, large = official(folder / "make_cifar_c.py"), official(folder / "make_imagenet_c.py")
  # Pixelate wants the sides that the files are written for.
  images = {"small": rng.integers(0, 256, (32, 32, 3), np.uint8)}
  images["large"] = rng.integers(0, 256, (68, 66, 3), np.uint8)
  images["small"][:4, :4] = 0  # black has no hue
  found = dict(images)
  for size, scope in (("small", small), ("large", large)):
    for kind in (*EXACT, *DRAWN, *(("pixelate",) if size == "small" else ())):
      for severity in (1, 3, 5):
        np.random.seed(SEED)
        given = Image.fromarray(images[size]) if kind == "pixelate" else images[size]
        damaged = np.asarray(scope[kind](given, severity), np.float64) / 255
        found[f"{size}/{kind}/{severity}"] = damaged[::3, ::3].astype(np.float32)
  np.savez_compressed(flags.out, **found)


if __name__ == "__main__":
  main()
