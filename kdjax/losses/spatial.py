"""Where in an image features are strong: attention maps, and maps compared at several sizes."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.losses import _common, _maps
from kdjax.losses.resize import average_pool, same_size

__all__ = ["attention_transfer", "hierarchical_context"]


def attention_transfer(
  student_features: Float[Array, "batch height width channel"],
  teacher_features: Float[Array, "batch teacher_height teacher_width teacher_channel"],
  *,
  power: int = 2,
  mode: str = "code",
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  r"""The distance of normalised attention maps, A = sum_c |F|^power over all places, |A|_2 = 1.

  The paper takes the length of A_S - A_T. The common code takes the mean of its squares over the
  places instead: much smaller, which is why its weight is 1000.

  Args:
    student_features: [B, H, W, C], any float dtype.
    teacher_features: [B, H', W', C']; a larger map is averaged down to the size of the other. No
      gradient flows here.
    power: at least 1; larger ones look at the strongest places alone. Static.
    mode: "code" or "paper", as above. Static.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B]: up to 2 in mode "paper", up to 2 / (H W) in mode "code".

  Raises:
    KdjaxError: if these are no maps of one batch, or for another mode or power.

  Example:
    >>> student = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    >>> print(attention_transfer(student, 3 * student[:, ::-1]))
    [1.]

  Reference:
    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017,
    https://arxiv.org/abs/1612.03928; mode "code": megvii-research/mdistiller, distillers/AT.py
  """
  name = "attention_transfer"
  if mode not in ("code", "paper"):
    raise KdjaxError(f"{name}: mode is {mode!r}; it must be 'code' or 'paper'")
  if power < 1:
    raise KdjaxError(f"{name}: power is {power}; it must be at least 1")
  student, teacher, where = _maps.align(name, student_features, teacher_features, where, maps=True)
  a, b = (
    _maps.unit(_maps.rows(jnp.mean(jnp.abs(x) ** power, axis=-1)))
    for x in same_size(student, teacher)
  )
  values = _common.norm(a - b) if mode == "paper" else jnp.mean(jnp.square(a - b), axis=-1)
  return _common.masked(values, where)


def hierarchical_context(
  student_features: Float[Array, "batch height width channel"],
  teacher_features: Float[Array, "batch height width channel"],
  *,
  where: Bool[Array, "batch"] | None = None,
) -> Float[Array, "batch"]:
  """The mean squared difference of maps at full size and averaged down to 4x4, 2x2 and 1x1.

  The weights 1, 1/2, 1/4 and 1/8 go to the sizes in turn, of which those that are not smaller than
  the height of the maps are left out, and are divided by their sum.

  Args:
    student_features: [B, H, W, C], any float dtype.
    teacher_features: [B, H, W, C]; no gradient flows here.
    where: bool, broadcastable to [B]; False examples return 0.

  Returns:
    float32[B], at least 0; the square of a constant difference.

  Raises:
    KdjaxError: if these are no maps of one shape.

  Example:
    >>> x = jnp.zeros((1, 8, 8, 3))
    >>> print(hierarchical_context(x, x + 2))
    [4.]

  Reference:
    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021,
    https://arxiv.org/abs/2104.09044
  """
  student, teacher, where = _maps.align(
    "hierarchical_context", student_features, teacher_features, where, same_shape=True, maps=True
  )
  # Averaging is linear, so that the difference is averaged once.
  difference = student - teacher
  value, weight, total = _maps.example_mean(jnp.square(difference)), 1.0, 1.0
  for size in (4, 2, 1):
    if size < difference.shape[1]:
      weight /= 2
      total += weight
      pooled = average_pool(difference, (size, size))
      value = value + weight * _maps.example_mean(jnp.square(pooled))
  return _common.masked(value / total, where)
