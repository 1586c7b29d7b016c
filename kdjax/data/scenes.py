"""Scenes composed of real images, whose label at every place is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.data.base import ArraySource, DataSet, Source
from kdjax.errors import KdjaxError, within
from kdjax.resolve import resolve


def scenes(
  *,
  images: str | Mapping[str, Any],
  side: int = 32,
  items: int = 3,
  shrink: int = 2,
  stride: int = 2,
  train_scenes: int = 2000,
  test_scenes: int = 500,
  threshold: float = 0.2,
  noise: float = 0.1,
  seed_of_scenes: int = 0,
) -> DataSet:
  """Scenes of items on a noisy ground, each place labelled 0 for the ground or 1 + an item's class.

  Items are images of another data set, such as "fashion_mnist", shrunken and put at random, later
  ones in front. Those of training scenes are training images, those of test scenes test images.

  Args:
    images: the data set of `kdjax.data` that has the items, or that with its arguments.
    side: height and width of a scene.
    items: in each scene.
    shrink: items are means of so many by so many pixels.
    stride: labels are told of every so many-th row and column.
    train_scenes: how many.
    test_scenes: how many.
    threshold: above which a pixel of an item belongs to it.
    noise: the ground is uniform in [0, noise].
    seed_of_scenes: what they are drawn from.

  Returns:
    The data set with `places`, one class more than the items have, and images [side, side, C].

  Raises:
    KdjaxError: unknown images, items larger than a scene, values out of range.
  """
  from kdjax import data  # it names this file's function, too

  spec = {"name": images} if isinstance(images, str) else dict(images)
  own = {name: value for name, value in spec.items() if name != "name"}
  with within("config.data.images"):
    whole: DataSet = resolve(data, spec.get("name"), own, field="config.data.images.name")()
  height, width, channels = whole.image_shape
  if shrink < 1 or height % shrink or width % shrink or max(height, width) // shrink > side:
    raise KdjaxError(
      f"config.data.shrink = {shrink} must divide the items' sides, {height} and {width}, and leave"
      f" no more than config.data.side = {side}"
    )
  if stride < 1 or side % stride:
    raise KdjaxError(f"config.data.stride = {stride} must divide config.data.side = {side}")
  if min(items, train_scenes, test_scenes) < 1 or not 0 <= noise <= 1:
    raise KdjaxError(
      f"config.data: items = {items}, train_scenes = {train_scenes} and test_scenes ="
      f" {test_scenes} must be at least 1 and noise = {noise} in [0, 1]"
    )

  def composed(source: Source, count: int, part: int) -> ArraySource:
    rng = np.random.default_rng((seed_of_scenes, part))
    pictures = rng.uniform(0, noise, (count, side, side, channels)).astype(np.float32)
    labels = np.zeros((count, side, side), np.int32)
    for scene in range(count):
      drawn = source.read(rng.integers(0, len(source), items))
      small = drawn["image"].reshape(items, height // shrink, shrink, width // shrink, shrink, -1)
      small = small.mean((2, 4))
      for item, label in zip(small, drawn["label"], strict=True):
        top, left = (int(rng.integers(0, side - n + 1)) for n in item.shape[:2])
        here = np.s_[scene, top : top + item.shape[0], left : left + item.shape[1]]
        mine = item.max(-1) > threshold
        pictures[here] = np.where(mine[..., None], item, pictures[here])
        labels[here] = np.where(mine, 1 + label, labels[here])
    return ArraySource(pictures, labels[:, ::stride, ::stride].reshape(count, -1))

  return whole._replace(
    train=composed(whole.train, train_scenes, 0),
    test=composed(whole.test, test_scenes, 1),
    num_classes=whole.num_classes + 1,
    image_shape=(side, side, channels),
    name=f"scenes of {whole.name}",
    places=(side // stride, side // stride),
  )
