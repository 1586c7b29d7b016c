"""Random changes of training images, each a pure function of (seed, epoch, record id).

An augmentation is `augment(example, rng) -> example`. The generator that it gets is made anew for
each record, so the image depends neither on the order of the records nor on how they are batched
or shared out to processes. `__all__` holds what a config may name.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.base import Example, Source, stack, unstack
from kdjax.data.corruptions import FOR_TRAINING, SEVERITIES, Corrupt, check_corruptions
from kdjax.data.crops import RandomErasing, RandomResizedCrop
from kdjax.data.rand_augment import LEVELS, RandAugment
from kdjax.errors import KdjaxError
from kdjax.resolve import resolve

__all__ = [
  "corrupt",
  "cutout",
  "flip",
  "mask_seed",
  "mixup",
  "rand_augment",
  "random_erasing",
  "random_resized_crop",
  "shift",
  "two_views",
]

Augment = Callable[[Example, np.random.Generator], Example]


def shift(*, pixels: int = 2) -> Augment:
  """Moves the image by up to `pixels` in each direction; what comes in from outside is 0."""
  _at_least_one("shift", "pixels", pixels)
  return _Shift(pixels)


def flip(*, probability: float = 0.5) -> Augment:
  """Mirrors left and right."""
  if not 0 <= probability <= 1:
    raise KdjaxError(f"flip: probability is {probability}; it must lie in [0, 1]")
  return _Flip(probability)


def cutout(*, size: int = 8) -> Augment:
  """Sets a square of `size` pixels to 0; its centre is anywhere in the image.

  Reference:
    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    2017, https://arxiv.org/abs/1708.04552
  """
  _at_least_one("cutout", "size", size)
  return _Cutout(size)


def corrupt(
  *,
  kinds: Sequence[str] = FOR_TRAINING,
  severities: Sequence[int] = SEVERITIES,
  probability: float = 1.0,
) -> Augment:
  """Damages the image in one way, drawn with its severity from those given, of ImageNet-C.

  Args:
    kinds: from `kdjax.data.corruptions.KINDS`; the default has those that ImageNet-C does not judge
      by.
    severities: from 1 to 5.
    probability: that the image is damaged at all.
  """
  check_corruptions("corrupt", kinds, severities)
  if not 0 <= probability <= 1:
    raise KdjaxError(f"corrupt: probability is {probability}; it must lie in [0, 1]")
  return Corrupt(tuple(kinds), tuple(severities), probability)


def rand_augment(
  *, layers: int = 2, magnitude: float = 9.0, spread: float = 0.5, probability: float = 0.5
) -> Augment:
  """Some of fifteen changes of geometry and colour, one after the other, of images in [0, 1].

  Args:
    layers: how many are drawn, with replacement.
    magnitude: their strength in [0, 10].
    spread: standard deviation of the strength, which is drawn for each.
    probability: that one drawn is done.

  Reference:
    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
    CVPR Workshops 2020, https://arxiv.org/abs/1909.13719. The defaults are those of TinyViT,
    "rand-m9-mstd0.5-inc1" of timm.
  """
  _at_least_one("rand_augment", "layers", layers)
  if not 0 <= magnitude <= LEVELS:
    raise KdjaxError(f"rand_augment: magnitude is {magnitude}; it must lie in [0, {LEVELS:g}]")
  if not spread >= 0:
    raise KdjaxError(f"rand_augment: spread is {spread}; it must be at least 0")
  if not 0 <= probability <= 1:
    raise KdjaxError(f"rand_augment: probability is {probability}; it must lie in [0, 1]")
  return RandAugment(layers, magnitude, spread, probability)


def random_resized_crop(
  *,
  size: int = 224,
  area: Sequence[float] = (0.08, 1.0),
  ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Augment:
  """A random part of the image, of any size, as a square of `size` pixels.

  Of data read with a `size`, the part is of the image as it is stored. That size is to be the same.

  Args:
    size: of the result's sides.
    area: least and largest share of the image's area.
    ratio: least and largest width to height, before it is made a square.

  Reference:
    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842
    (section 6); torchvision, transforms.RandomResizedCrop
  """
  _at_least_one("random_resized_crop", "size", size)
  for name, (low, high) in {"area": area, "ratio": ratio}.items():
    if not 0 < low <= high or (name == "area" and high > 1):
      raise KdjaxError(
        f"random_resized_crop: {name} is ({low}, {high}); wanted is 0 < least <= largest"
        f"{' <= 1' if name == 'area' else ''}"
      )
  return RandomResizedCrop(size, tuple(area), tuple(ratio))


def random_erasing(*, probability: float = 0.25) -> Augment:
  """Noise, uniform in [0, 1], in place of a part of the image: 2 to 33% of it, drawn for each.

  Reference:
    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, https://arxiv.org/abs/1708.04896
    (algorithm 1)
  """
  if not 0 <= probability <= 1:
    raise KdjaxError(f"random_erasing: probability is {probability}; it must lie in [0, 1]")
  return RandomErasing(probability)


def mask_seed() -> Augment:
  """Gives each image a `mask_seed`, from which a masked autoencoder draws the patches it hides."""
  return _MaskSeed()


def mixup(*, alpha: float = 1.0) -> Augment:
  """Adds to each image, as it is by then, the image of the next row of the stream: the last step.

  The image's own share is max(a, 1 - a) with a ~ Beta(alpha, alpha), drawn for each image; label
  and index stay its own. Student and teacher see the same mixture.

  Reference:
    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412; Beyer et al., "Knowledge distillation: A good teacher is
    patient and consistent", CVPR 2022, https://arxiv.org/abs/2106.05237
    (google-research/big_vision, utils.py, `get_mixup`, which draws one share for a whole batch)
  """
  if not alpha > 0:
    raise KdjaxError(f"mixup: alpha is {alpha}; it must be above 0")
  return _Mixup(alpha)


def two_views(*, strong: Sequence[Mapping[str, Any]]) -> Augment:
  """Keeps a second view of the image, as it is by then, with augmentations of its own.

  What comes after this one changes the first view alone. A program that reads `second_image` gives
  both views to the models (see `kdjax.programs.views`).

  Args:
    strong: the second view's augmentations, as `config.data.augment` lists them.
  """
  here, parts = sys.modules[__name__], []
  for spec in strong:
    if not isinstance(spec, Mapping) or spec.get("name") in (None, "mixup", "two_views"):
      raise KdjaxError(
        f"two_views: strong holds {spec!r}; each must name an augmentation of one image"
      )
    arguments = {key: value for key, value in spec.items() if key != "name"}
    parts.append(resolve(here, spec["name"], arguments, field="two_views: strong.name")())
  return _TwoViews(compose(*parts))


def compose(*parts: Augment) -> Augment:
  """One after the other, with one generator.

  Raises:
    KdjaxError: mixup before the end.
  """
  if any(mixes(part) for part in parts[:-1]):
    raise KdjaxError("mixup must be the last augmentation: it takes the images as they are by then")
  return _Compose(parts)


def mixes(augment: Augment | None) -> bool:
  """Whether an augmentation reads the row behind the last one, too."""
  last = augment.parts[-1] if isinstance(augment, _Compose) and augment.parts else augment
  return isinstance(last, _Mixup)


def records_for(source: Source, positions: np.ndarray, augment: Augment | None) -> list[Example]:
  """The records that an augmentation is to change: as they are stored, where it crops them."""
  if crop_size(augment) is not None and hasattr(source, "as_stored"):
    return source.as_stored(positions)
  return unstack(source.read(positions))


def crop_size(augment: Augment | None) -> int | None:
  """The sides of the images that come out of its `random_resized_crop`; None without one."""
  parts = augment.parts if isinstance(augment, _Compose) else (augment,)
  return next((part.size for part in parts if isinstance(part, RandomResizedCrop)), None)


def augment_rows(
  rows: Sequence[Example], augment: Augment, *, seed: int, epochs: np.ndarray
) -> Example:
  """Augments every record with a generator of its own.

  Args:
    rows: the records; `index` is in each.
    augment: what to do to each; afterwards they have one size.
    seed: of the run.
    epochs: int [B], how often each record was read before.

  Returns:
    The augmented records, stacked along a new first axis; where they are mixed, without the last.
  """
  rngs = [
    np.random.default_rng((seed, int(epoch), int(row["index"])))
    for row, epoch in zip(rows, epochs, strict=True)
  ]
  batch = stack([augment(row, rng) for row, rng in zip(rows, rngs, strict=True)])
  if not mixes(augment):
    return batch
  mixup = augment.parts[-1] if isinstance(augment, _Compose) else augment
  share = np.array([mixup.share(rng) for rng in rngs[:-1]], np.float32).reshape(-1, 1, 1, 1)
  first = {key: values[:-1] for key, values in batch.items()}
  return first | {"image": share * first["image"] + (1 - share) * batch["image"][1:]}


# Dataclasses, not closures: reader processes get them pickled.


@dataclasses.dataclass(frozen=True)
class _Shift:
  pixels: int

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    down, right = (_below(rng, 2 * self.pixels + 1) - self.pixels for _ in range(2))
    to_rows, from_rows = _overlap(down, image.shape[0])
    to_columns, from_columns = _overlap(right, image.shape[1])
    moved = np.zeros(image.shape, image.dtype)
    moved[to_rows, to_columns] = image[from_rows, from_columns]
    return example | {"image": moved}


@dataclasses.dataclass(frozen=True)
class _Flip:
  probability: float

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    return example | {"image": example["image"][:, ::-1]}


@dataclasses.dataclass(frozen=True)
class _Cutout:
  size: int

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = example["image"].copy()
    top, left = (_below(rng, side) - self.size // 2 for side in image.shape[:2])
    image[max(top, 0) : max(top + self.size, 0), max(left, 0) : max(left + self.size, 0)] = 0
    return example | {"image": image}


@dataclasses.dataclass(frozen=True)
class _MaskSeed:
  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return example | {"mask_seed": np.int32(_below(rng, 2**31))}


@dataclasses.dataclass(frozen=True)
class _Mixup:
  alpha: float

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return example  # mixed in `augment_batch`, where there are two

  def share(self, rng: np.random.Generator) -> float:
    a = rng.beta(self.alpha, self.alpha)
    return max(a, 1 - a)


@dataclasses.dataclass(frozen=True)
class _TwoViews:
  strong: Augment

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return example | {"second_image": self.strong(example, rng)["image"]}


@dataclasses.dataclass(frozen=True)
class _Compose:
  parts: tuple[Augment, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    for part in self.parts:
      example = part(example, rng)
    return example


def _below(rng: np.random.Generator, bound: int) -> int:
  # Many times faster than rng.integers, and there is one generator per image.
  return int(rng.random() * bound)


def _overlap(offset: int, size: int) -> tuple[slice, slice]:
  """(where to, where from) along one axis; both empty when the image leaves the frame."""
  kept = max(size - abs(offset), 0)
  if offset >= 0:
    return slice(size - kept, size), slice(0, kept)
  return slice(0, kept), slice(size - kept, size)


def _at_least_one(name: str, argument: str, value: int) -> None:
  if value < 1:
    raise KdjaxError(f"{name}: {argument} is {value}; it must be at least 1")
