"""Temperature scaling: the one number that mends overconfidence without changing a decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.losses.recalibration import recalibrate_top_k
from kdjax.losses.signals import TopK

LOG_RANGE = 3.0  # natural logarithm; temperatures from 0.05 to 20
STEPS = 40  # each halves the interval: exhausts float32
GRID = tuple(np.exp(np.linspace(-1.5, 1.5, 61)).tolist())  # 0.22 to 4.5, 1 in the middle


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


def top_k_temperature(
  signal: TopK,
  labels: Int[Array, "*batch"],
  where: Bool[Array, "*batch"] | None = None,
  *,
  grid: Sequence[float] = GRID,
  bins: int = 10,
  legacy: bool = False,
) -> tuple[float, np.ndarray]:
  """The temperature of `kdjax.losses.recalibrate_top_k` with the least calibration error.

  Judge the teacher on text that the student does not learn from. The confidence is the recalibrated
  probability of the likeliest class among the K, which is right where it is the label.

  Args:
    signal: [..., K].
    labels: [...], 0 .. V-1; rows with a negative label are not counted.
    where: [...], True = counted; None counts all.
    grid: temperatures > 0 to try; the paper searches a grid but does not say which.
    bins: equal bins of confidence, on which the error depends.
    legacy: see `recalibrate_top_k`.

  Returns:
    (the temperature; the expected calibration error of each of the grid, float64). Of equal errors
    the temperature nearest to 1 wins.

  Raises:
    KdjaxError: shapes that do not fit, a grid without temperatures > 0, or nothing that counts.

  Example:
    >>> log_probs = jnp.log(jnp.array([[0.9, 0.1]] * 5))  # 90% sure, right in 4 of 5
    >>> signal = TopK(jnp.array([[0, 1]] * 5), log_probs, vocab=9, temperature=1.0)
    >>> temperature, _ = top_k_temperature(signal, jnp.array([0, 0, 0, 0, 1]))
    >>> print(f"{temperature:.2f}")  # log 9 / log 4 = 1.58
    1.57

  Reference:
    Shum et al., "FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy
    Distillation", EMNLP 2024, https://arxiv.org/abs/2408.12168
  """
  labels = np.asarray(labels)
  if labels.shape != signal.ids.shape[:-1]:
    raise KdjaxError(
      f"top_k_temperature: labels have shape {labels.shape}, the signal's ids {signal.ids.shape};"
      " one label per row is wanted"
    )
  if not len(grid) or not min(grid) > 0:
    raise KdjaxError(f"top_k_temperature: grid is {list(grid)}; give temperatures > 0")
  counted = labels >= 0 if where is None else (labels >= 0) & np.asarray(where)
  if not counted.any():
    raise KdjaxError("top_k_temperature: no row counts; give labels of held-out text")
  ids, log_probs = (np.asarray(x)[counted] for x in (signal.ids, signal.log_probs))
  first = np.argmax(log_probs, axis=-1)[:, None]
  right = np.take_along_axis(ids, first, axis=-1)[:, 0] == labels[counted]

  @jax.jit
  def confidence(ids, log_probs, temperature):
    rows = dataclasses.replace(signal, ids=ids, log_probs=log_probs)
    tempered = recalibrate_top_k(rows, temperature=temperature, legacy=legacy)
    return jnp.max(jax.nn.softmax(tempered.log_probs), axis=-1)

  errors = [
    _calibration_error(np.asarray(confidence(ids, log_probs, t)), right, bins) for t in grid
  ]
  best = min(range(len(grid)), key=lambda i: (errors[i], abs(np.log(grid[i]))))
  return float(grid[best]), np.array(errors)


def _calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
  """Mean over rows of |accuracy - confidence| of their bin."""
  confidence = confidence.astype(np.float64)
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(place, weights=right - confidence, minlength=bins)
  return float(np.abs(gaps).sum() / len(right))
