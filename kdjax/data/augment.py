"""Random changes of training images, each a pure function of (seed, epoch, record id).

An augmentation is `augment(example, rng) -> example`. The generator that it gets is made anew for
each record, so the image depends neither on the order of the records nor on how they are batched
or shared out to processes. `__all__` holds what a config may name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from kdjax.data.base import Example, stack
from kdjax.errors import KdjaxError

__all__ = ["cutout", "flip", "shift"]

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


def compose(*parts: Augment) -> Augment:
  """One after the other, with one generator."""
  return _Compose(parts)


def augment_batch(batch: Example, augment: Augment, *, seed: int, epochs: np.ndarray) -> Example:
  """Augments every record of a batch with a generator of its own.

  Args:
    batch: records stacked along the first axis, `index` among them.
    augment: what to do to each.
    seed: of the run.
    epochs: int [B], how often each record was read before.

  Returns:
    The batch of the augmented records.
  """
  rows = [{key: values[i] for key, values in batch.items()} for i in range(len(epochs))]
  return stack(
    [
      augment(row, np.random.default_rng((seed, int(epoch), int(row["index"]))))
      for row, epoch in zip(rows, epochs, strict=True)
    ]
  )


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
