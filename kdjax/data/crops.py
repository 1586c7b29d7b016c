"""Images of any size cut to one: the centre for evaluation, somewhere for training."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float32
from PIL import Image

from kdjax.data.base import Example

Box = tuple[float, float, float, float]
CENTRE = 224 / 256  # of the shorter side, as ImageNet is evaluated


def resized(image: np.ndarray, box: Box, size: int) -> Float32[np.ndarray, "size size channel"]:
  """A part of an image as a square, by bicubic interpolation over all the pixels it covers.

  Args:
    image: [height, width, channel]; uint8, or floats in [0, 1].
    box: (left, top, right, bottom) in pixels.
    size: of the result's sides.

  Returns:
    Values in [0, 1].
  """
  if image.dtype == np.uint8:
    image = image.astype(np.float32) / np.float32(255)
  channels = [
    Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
      (size, size), Image.Resampling.BICUBIC, box=box
    )
    for c in range(image.shape[-1])
  ]
  # Between two edges a cubic goes beyond both.
  return np.clip(np.stack([np.asarray(each) for each in channels], axis=-1), 0, 1)


def centre(image: np.ndarray, size: int) -> Float32[np.ndarray, "size size channel"]:
  """The square in the middle whose side is 224/256 of the image's shorter one, at `size` pixels."""
  height, width = image.shape[:2]
  side = CENTRE * min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  return resized(image, (left, top, left + side, top + side), size)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """See `kdjax.data.augment.random_resized_crop`."""

  size: int
  area: tuple[float, float]
  ratio: tuple[float, float]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    height, width = example["image"].shape[:2]
    box = self.box(height, width, rng)
    return example | {"image": resized(example["image"], box, self.size)}

  def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
    """Ten tries for a part that lies in the image; then the largest in the middle that does."""
    for _ in range(10):
      area = height * width * rng.uniform(*self.area)
      ratio = math.exp(rng.uniform(*(math.log(r) for r in self.ratio)))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
        return float(left), float(top), float(left + w), float(top + h)
    w = min(width, height * self.ratio[1])
    h = min(height, width / self.ratio[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class RandomErasing:
  """See `kdjax.data.augment.random_erasing`."""

  probability: float
  area: tuple[float, float] = (0.02, 1 / 3)
  ratio: tuple[float, float] = (0.3, 1 / 0.3)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    image = example["image"].copy()
    height, width, channels = image.shape
    for _ in range(10):
      area = height * width * rng.uniform(*self.area)
      ratio = math.exp(rng.uniform(*(math.log(r) for r in self.ratio)))
      w, h = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
      if 0 < w < width and 0 < h < height:
        left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
        image[top : top + h, left : left + w] = rng.random((h, w, channels), np.float32)
        break
    return example | {"image": image}
