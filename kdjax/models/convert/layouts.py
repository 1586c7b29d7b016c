"""How arrays lie in a Hugging Face checkpoint and in our parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
  """How arrays are laid out on the two sides.

  Attributes:
    read: `read(theirs, our shapes) -> ours`, one array per path.
    write: `write(*ours) -> theirs`.
  """

  read: Callable[[np.ndarray, Sequence[Shape]], tuple[np.ndarray, ...]]
  write: Callable[..., np.ndarray]


class Entry(NamedTuple):
  """One tensor of theirs and the parameters it holds.

  Attributes:
    theirs: its name; with "{i}" it exists for each layer.
    ours: paths of our parameters, joined by "/"; those of state begin with "state:". Those of
      layers are stacked along a first axis.
    layout: between the two.
    stack: the stack whose layers "{i}" counts.
    every: how many of their layers one of ours stands for.
    first: the place of this one among them.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: Layout
  stack: str = "stack"
  every: int = 1
  first: int = 0

  @property
  def layered(self) -> bool:
    return "{i}" in self.theirs


def flat(array: np.ndarray, shapes: Sequence[Shape]) -> tuple[np.ndarray, ...]:
  return (array.reshape(shapes[0]),)


SAME = Layout(flat, lambda array: array)
# A bias per head is flat on their side.
VECTOR = Layout(flat, lambda array: array.reshape(-1))
# Gemma's norms multiply by 1 + weight.
FROM_ONE = Layout(
  lambda array, shapes: ((array.astype(np.float32) + 1.0).reshape(shapes[0]),),
  lambda array: array - 1.0,
)


def dense(inputs: int) -> Layout:
  """[out, in] on their side; ours has `inputs` input axes, then output axes."""
  return Layout(
    lambda array, shapes: (array.T.reshape(shapes[0]),),
    lambda array: array.reshape(math.prod(array.shape[:inputs]), -1).T,
  )


def conv1d(inputs: int) -> Layout:
  """[in, out] on their side, as GPT-2 has it."""
  return Layout(flat, lambda array: array.reshape(math.prod(array.shape[:inputs]), -1))


DENSE, DENSE_OUT = dense(1), dense(2)


def _conv(array: np.ndarray, shapes: Sequence[Shape]) -> tuple[np.ndarray, ...]:
  return (array.transpose(2, 3, 1, 0).reshape(shapes[0]),)


# [out, in, height, width] on their side; ours is [height, width, in, out].
CONV = Layout(_conv, lambda array: array.transpose(3, 2, 0, 1))
# One kernel a channel: [channel, 1, height, width] and [height, width, channel].
DEPTHWISE = Layout(
  lambda array, shapes: (array[:, 0].transpose(1, 2, 0),),
  lambda array: array.transpose(2, 0, 1)[:, None],
)


def patches(size: int) -> Layout:
  """A convolution of patches on their side; ours multiplies flattened patches [size^2 in, out]."""
  return Layout(
    _conv, lambda array: array.reshape(size, size, -1, array.shape[-1]).transpose(3, 2, 0, 1)
  )
