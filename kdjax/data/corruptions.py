"""Damage to images as ImageNet-C defines it: noise, blur, light, coarse pixels; five severities.

The strengths are those of CIFAR-10-C for images with a side below 64 pixels, else of ImageNet-C.
What hangs on ImageMagick, on JPEG or on pictures of frost is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kdjax.data.base import Example
from kdjax.errors import KdjaxError
from kdjax.resolve import hint

SEVERITIES = (1, 2, 3, 4, 5)
SMALL_SIDE = 64
Damage = Callable[[np.ndarray, float | tuple[float, float], np.random.Generator], np.ndarray]


def corrupt(image: np.ndarray, kind: str, severity: int, rng: np.random.Generator) -> np.ndarray:
  """One damaged copy of an image.

  Args:
    image: float32 [H, W, C] in [0, 1].
    kind: a name of `KINDS`.
    severity: 1 .. 5.
    rng: what noise is drawn from; the other kinds draw nothing.

  Returns:
    float32 [H, W, C] in [0, 1], not rounded to bytes as the stored sets are.

  Reference:
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261 (hendrycks/robustness,
    ImageNet-C/create_c/make_cifar_c.py and make_imagenet_c.py).
  """
  small, large, damage = _TABLE[kind]
  strength = (small if min(image.shape[:2]) < SMALL_SIDE else large)[severity - 1]
  return np.clip(damage(image, strength, rng), 0, 1).astype(np.float32)


def check_corruptions(field: str, kinds: Sequence[str], severities: Sequence[int]) -> None:
  """Raises KdjaxError for kinds or severities that do not exist, come twice, or are none."""
  for name, values, known in (("kinds", kinds, KINDS), ("severities", severities, SEVERITIES)):
    for value in values:
      if value not in known:
        told = hint(str(value), [str(each) for each in known])
        raise KdjaxError(f"{field}: {name} holds {value!r}, which does not exist{told}")
    if not values or len(set(values)) < len(values):
      raise KdjaxError(f"{field}: {name} = {list(values)} must name at least one, and each once")


@dataclasses.dataclass(frozen=True)
class Corrupt:
  """The augmentation; see `kdjax.data.augment.corrupt`."""

  kinds: tuple[str, ...]
  severities: tuple[int, ...]
  probability: float

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    kind, severity = (each[int(rng.random() * len(each))] for each in (self.kinds, self.severities))
    return example | {"image": corrupt(example["image"], kind, severity, rng)}


def _gaussian_noise(image, scale, rng):
  return image + rng.normal(size=image.shape, scale=scale)


def _shot_noise(image, photons, rng):
  return rng.poisson(image * photons) / photons


def _impulse_noise(image, share, rng):
  hit, white = rng.random(image.shape) <= share, rng.random(image.shape) <= 0.5
  return np.where(hit, white.astype(image.dtype), image)


def _speckle_noise(image, scale, rng):
  return image + image * rng.normal(size=image.shape, scale=scale)


def _gaussian_blur(image, sigma, rng):
  from scipy import ndimage  # for what damages images alone

  return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _defocus_blur(image, disk, rng):
  from scipy import ndimage

  return ndimage.correlate(image, _disk(*disk)[..., None], mode="mirror")


def _contrast(image, share, rng):
  mean = image.mean((0, 1), keepdims=True)
  return (image - mean) * share + mean


def _brightness(image, more, rng):
  """Raises the value of hue, saturation and value; black, which has no hue, becomes grey."""
  value = image.max(-1, keepdims=True)
  raised = np.clip(value + more, 0, 1)
  return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def _pixelate(image, share, rng):
  for axis in (0, 1):
    side = image.shape[axis]
    fewer = int(side * share)
    resized = _boxes(fewer, side) @ _boxes(side, fewer)
    image = np.moveaxis(np.tensordot(resized, image, axes=(1, axis)), 0, axis)
  return image


def _disk(radius: float, sigma: float) -> np.ndarray:
  """A disk of weights, its edge softened; no wider than it must be.

  The weights sum to 1 before the edge is softened, hence to 1.01 at the two largest radii, whose
  edge meets that of the array: as the official ones do.
  """
  from scipy import ndimage

  reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
  places = np.arange(-reach, reach + 1)
  disk = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).astype(np.float32)
  disk /= disk.sum()
  soft = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
  for axis in (0, 1):
    disk = ndimage.correlate1d(disk, soft / soft.sum(), axis=axis, mode="mirror")
  kept = int(np.abs(places[disk.any(0)]).max())
  return disk[reach - kept : reach + kept + 1, reach - kept : reach + kept + 1]


def _boxes(old: int, new: int) -> np.ndarray:
  """[new, old]: each new pixel is the mean of the old ones whose centres it covers, or the next."""
  scale = old / new
  width = max(scale, 1.0)
  centres = (np.arange(new) + 0.5) * scale
  away = (np.arange(old)[None] + 0.5 - centres[:, None]) / width
  covered = ((away > -0.5) & (away <= 0.5)).astype(np.float32)
  return covered / covered.sum(1, keepdims=True)


# name: (strengths in small images, in large ones, the damage)
_TABLE: dict[str, tuple[tuple, tuple, Damage]] = {
  "gaussian_noise": (
    (0.04, 0.06, 0.08, 0.09, 0.1),
    (0.08, 0.12, 0.18, 0.26, 0.38),
    _gaussian_noise,
  ),
  "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), _shot_noise),
  "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise),
  "defocus_blur": (
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    _defocus_blur,
  ),
  "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
  "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
  "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
  "speckle_noise": ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6), _speckle_noise),
  "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), _gaussian_blur),
}
KINDS = tuple(_TABLE)
# ImageNet-C sets these apart: a model may learn from them and is judged on the others.
FOR_TRAINING = ("speckle_noise", "gaussian_blur")
FOR_TEST = tuple(kind for kind in KINDS if kind not in FOR_TRAINING)
