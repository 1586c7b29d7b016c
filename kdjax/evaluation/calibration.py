"""Temperature scaling: the one number that mends overconfidence without changing a decision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOG_RANGE = 3.0  # natural logarithm; temperatures from 0.05 to 20
STEPS = 40  # each halves the interval: exhausts float32


def temperature_scale(
  logits: Float[Array, "rows classes"],
  labels: Int[Array, "rows"],
  where: Bool[Array, "rows"] | None = None,
) -> Float[Array, ""]:
  """The temperature that minimises the negative log-likelihood of held-out labels.

  The likelihood is convex in 1 / temperature, so its derivative, E_p[z] - z_label summed over rows,
  changes sign once; bisection on the logarithm finds where.

  Args:
    logits: [N, K], unnormalised, any float dtype.
    labels: [N], 0 .. K-1; rows with a negative label are not counted.
    where: [N], True = counted; None counts all.

  Returns:
    float32, in [e^-3, e^3]: an end of that range where no optimum lies inside it, as the lower one
    when every row is right. Divide logits by it.

  Example:
    >>> z = jnp.log(jnp.array([[0.8, 0.2]] * 5))  # right in 4 of 5: calibrated as it is
    >>> print(f"{temperature_scale(3 * z, jnp.array([0, 0, 0, 0, 1])):.3f}")
    3.000

  Reference:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599
  """
  counted = labels >= 0
  if where is not None:
    counted = counted & where
  logits = jnp.where(counted[:, None], logits.astype(jnp.float32), 0.0)
  chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]

  def too_confident(log_temperature):
    expected = jnp.sum(jax.nn.softmax(logits / jnp.exp(log_temperature)) * logits, axis=-1)
    return jnp.sum(jnp.where(counted, expected - chosen, 0.0)) > 0

  def halve(_, interval):
    low, high = interval
    middle = (low + high) / 2
    up = too_confident(middle)
    return jnp.where(up, middle, low), jnp.where(up, high, middle)

  ends = jnp.float32(-LOG_RANGE), jnp.float32(LOG_RANGE)
  low, high = jax.lax.fori_loop(0, STEPS, halve, ends)
  return jnp.exp((low + high) / 2)
