"""RandAugment on float images: a few random changes of geometry and colour, drawn for each image.

Images have values in [0, 1] and any number of channels. The changes are those of timm's
"rand-m9-mstd0.5-inc1" that TinyViT uses, written for arrays: what comes in from outside is 0.5,
places between pixels are blended linearly, and "color", which mixes with grey, leaves one channel
as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from kdjax.data.base import Example

LEVELS = 10.0
FILL = 0.5
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def sampled_at(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """The image read at `matrix` times each place's (row, column, 1), from the centre on.

  Args:
    image: float32 [H, W, C].
    matrix: [2, 3], from a place of the result to one of the image.

  Returns:
    float32 [H, W, C], `FILL` where the place is outside.
  """
  height, width, channels = image.shape
  centre = np.array([(height - 1) / 2, (width - 1) / 2])
  rows, columns = np.mgrid[:height, :width] - centre[:, None, None]
  row, column = (m[0] * rows + m[1] * columns + m[2] for m in matrix)
  row, column = row + centre[0] + 1, column + centre[1] + 1  # of the padded image
  padded = np.full((height + 2, width + 2, channels), FILL, np.float32)
  padded[1:-1, 1:-1] = image
  row, column = np.clip(row, 0, height + 1), np.clip(column, 0, width + 1)
  top, left = np.minimum(row.astype(int), height), np.minimum(column.astype(int), width)
  down, right = (row - top)[..., None], (column - left)[..., None]
  upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
  lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
  return (upper * (1 - down) + lower * down).astype(np.float32)


def _affine(image, *entries: float):
  return sampled_at(image, np.array(entries).reshape(2, 3))


def _rotate(image, share, sign):
  angle = np.deg2rad(30 * share * sign)
  c, s = np.cos(angle), np.sin(angle)
  return _affine(image, c, s, 0, -s, c, 0)


def _shear_x(image, share, sign):
  return _affine(image, 1, 0, 0, 0.3 * share * sign, 1, 0)


def _shear_y(image, share, sign):
  return _affine(image, 1, 0.3 * share * sign, 0, 0, 1, 0)


def _translate_x(image, share, sign):
  return _affine(image, 1, 0, 0, 0, 1, 0.45 * share * sign * image.shape[1])


def _translate_y(image, share, sign):
  return _affine(image, 1, 0, 0.45 * share * sign * image.shape[0], 0, 1, 0)


def _auto_contrast(image, share, sign):
  low, high = image.min((0, 1)), image.max((0, 1))
  span = np.where(high > low, high - low, 1)
  return np.where(high > low, (image - low) / span, image)


def _equalize(image, share, sign):
  """Each channel's value becomes the share of its pixels below, of 256 levels."""
  out = np.empty_like(image)
  for channel in range(image.shape[-1]):
    levels = np.rint(image[..., channel] * 255).astype(int)
    below = np.cumsum(np.bincount(levels.ravel(), minlength=256))
    first = below[levels.min()]
    rest = below[-1] - first
    out[..., channel] = (below[levels] - first) / rest if rest else image[..., channel]
  return out


def _invert(image, share, sign):
  return 1 - image


def _posterize(image, share, sign):
  steps = 2.0 ** (4 - int(4 * share))  # of the bits that are kept
  return np.floor(np.minimum(image, 255 / 256) * steps) / steps


def _solarize(image, share, sign):
  return np.where(image < 1 - share, image, 1 - image)


def _solarize_add(image, share, sign):
  return np.where(image < 0.5, np.minimum(image + share * 110 / 255, 1), image)


def _blend(image, other, share, sign):
  """From `other` at 0 over the image itself at 1 to beyond it."""
  factor = max(0.1, 1 + 0.9 * share * sign)
  return np.clip(other + factor * (image - other), 0, 1)


def _color(image, share, sign):
  if image.shape[-1] != 3:
    return image
  return _blend(image, (image @ _GREY)[..., None], share, sign)


def _contrast(image, share, sign):
  grey = image @ _GREY if image.shape[-1] == 3 else image
  return _blend(image, grey.mean(), share, sign)


def _brightness(image, share, sign):
  return _blend(image, 0.0, share, sign)


def _sharpness(image, share, sign):
  """Against the image smoothed inside its edge: a pixel counts 5, its neighbours 1 each."""
  smooth = image.copy()
  height, width, _ = image.shape
  if height > 2 and width > 2:
    around = sum(image[i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3))
    smooth[1:-1, 1:-1] = (around + 4 * image[1:-1, 1:-1]) / 13
  return _blend(image, smooth, share, sign)


# In the order of timm's list.
CHANGES: tuple[Callable, ...] = (
  _auto_contrast,
  _equalize,
  _invert,
  _rotate,
  _posterize,
  _solarize,
  _solarize_add,
  _color,
  _contrast,
  _brightness,
  _sharpness,
  _shear_x,
  _shear_y,
  _translate_x,
  _translate_y,
)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """See `kdjax.data.augment.rand_augment`."""

  layers: int
  magnitude: float
  spread: float
  probability: float

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = example["image"].astype(np.float32)
    for _ in range(self.layers):
      change = CHANGES[int(rng.random() * len(CHANGES))]
      if rng.random() >= self.probability:
        continue
      level = np.clip(rng.normal(self.magnitude, self.spread), 0, LEVELS)
      sign = 1.0 if rng.random() < 0.5 else -1.0
      image = change(image, float(level) / LEVELS, sign).astype(np.float32)
    return example | {"image": image}
