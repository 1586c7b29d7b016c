"""Checks on model hyper-parameters: one message form, before any array is made."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.errors import KdjaxError
from kdjax.models.base import Batch

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def require(ok: bool, field: str, value: Any, wanted: str) -> None:
  """Raises KdjaxError naming the field, its value and what was wanted, unless `ok`."""
  if not ok:
    raise KdjaxError(f"model field {field!r} is {value!r}; wanted {wanted}")


def positive(**fields: Any) -> None:
  """Every field must be an integer of at least 1."""
  for field, value in fields.items():
    is_int = isinstance(value, int) and not isinstance(value, bool)
    require(is_int and value >= 1, field, value, "an integer >= 1")


def one_of(field: str, value: Any, allowed: Collection[str]) -> None:
  require(value in allowed, field, value, f"one of {sorted(allowed)}")


def dropout_rate(value: float, field: str = "dropout") -> None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  require(is_number and 0 <= value < 1, field, value, "a number in [0, 1)")


def stages(**fields: Any) -> None:
  """Every field must list a positive integer for each stage; all have as many."""
  first = len(next(iter(fields.values()))) if _is_list(next(iter(fields.values()))) else 0
  for field, value in fields.items():
    told = f"a list of integers, one for each stage, as many in {', '.join(fields)}"
    require(_is_list(value) and len(value) == first and first > 0, field, value, told)
    positive(**{f"{field}[{i}]": own for i, own in enumerate(value)})


def shrinks(image_shape: tuple[int, int, int], factor: int) -> None:
  """Height and width must be multiples of the factor by which the model shrinks them."""
  height, width, _ = image_shape
  fits = height % factor == 0 and width % factor == 0
  require(fits, "image_shape", image_shape, f"height and width that are multiples of {factor}")


def _is_list(value: Any) -> bool:
  return isinstance(value, tuple | list)


def compute_dtype(name: str) -> Any:
  """The jax dtype called `name`; parameters stay float32 whatever it is."""
  one_of("dtype", name, _DTYPES)
  return _DTYPES[name]


def channels(image_shape: tuple[int, int, int]) -> int:
  """The channels of an image shape, which is checked."""
  is_triple = isinstance(image_shape, tuple | list) and len(image_shape) == 3
  require(is_triple, "image_shape", image_shape, "(height, width, channels)")
  height, width, depth = image_shape
  positive(height=height, width=width, channels=depth)
  return depth


def image_input(image_shape: tuple[int, int, int]) -> Callable[[Batch], tuple[jax.Array]]:
  """Picks `batch["image"]` and holds its shape against the one the model was built for."""
  channels(image_shape)
  height, width, depth = image_shape

  def pick(batch: Batch) -> tuple[jax.Array]:
    if "image" not in batch:
      raise KdjaxError(f"the batch has no key 'image' for an image model; it has {sorted(batch)}")
    image = batch["image"]
    if image.shape[1:] != (height, width, depth):
      raise KdjaxError(
        f"batch['image'] has shape {image.shape}; wanted [B, {height}, {width}, {depth}], "
        "the model's image_shape"
      )
    return (image,)

  return pick
