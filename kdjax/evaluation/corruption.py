"""How often a classifier errs on damaged images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError

Pair = tuple[Array, Array]
ERROR = "corruption_error"


def corruption_errors(
  logits: Float[Array, "*batch classes"],
  labels: Int[Array, "*batch"],
  corruption: Int[Array, "*batch"],
  kinds: Sequence[str],
  where: Bool[Array, "*batch"] | None = None,
) -> dict[str, Pair]:
  """The share of wrong answers on damaged images, and on each kind of damage.

  Args:
    logits: [..., V].
    labels: [...], negative where unknown, which does not count.
    corruption: [...], 0 where clean, which does not count, else 1 + the place among `kinds`.
    kinds: names of the kinds of damage.
    where: [...], True = counted; None counts all.

  Returns:
    (sum, count) of `corruption_error`, which is the mean over kinds and severities where each has
    as many images, and of `corruption_error/<kind>`.

  Raises:
    KdjaxError: no kinds.

  Example:
    >>> logits = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> pairs = corruption_errors(logits, jnp.array([1, 1, 0]), jnp.array([0, 1, 2]), ("a", "b"))
    >>> {name: float(num / den) for name, (num, den) in pairs.items()}
    {'corruption_error': 0.5, 'corruption_error/a': 1.0, 'corruption_error/b': 0.0}

  Reference:
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261, section 4.
  """
  if not kinds:
    raise KdjaxError("corruption_errors: kinds is empty; name at least one kind of damage")
  where = jnp.ones(labels.shape, bool) if where is None else where
  counted = where & (labels >= 0)
  wrong = logits.astype(jnp.float32).argmax(-1) != labels

  def pair(own: Array) -> Pair:
    return (wrong & own).sum(dtype=jnp.float32), own.sum(dtype=jnp.float32)

  found = {ERROR: pair(counted & (corruption > 0))}
  for i, kind in enumerate(kinds):
    found[f"{ERROR}/{kind}"] = pair(counted & (corruption == i + 1))
  return found


def mean_corruption_error(errors: Mapping[str, float], baseline: Mapping[str, float]) -> float:
  """mCE: errors relative to a baseline's, kind by kind, and then their mean.

  Args:
    errors: holds `corruption_error/<kind>`, each the mean over severities; other names are ignored.
    baseline: holds the same of another model, as ImageNet-C takes AlexNet's.

  Returns:
    1 for the baseline itself, less for what errs less; inf where the baseline never errs on a kind
    and the other does.

  Raises:
    KdjaxError: no such errors, or other kinds in the baseline.

  Example:
    >>> mean_corruption_error({"corruption_error/a": 0.1}, {"corruption_error/a": 0.4})
    0.25
  """
  own, other = (
    {name: value for name, value in each.items() if name.startswith(f"{ERROR}/")}
    for each in (errors, baseline)
  )
  if not own or own.keys() != other.keys():
    raise KdjaxError(
      f"mean_corruption_error: errors are of {sorted(own)} and the baseline's of {sorted(other)};"
      " the same kinds are wanted, at least one"
    )
  with np.errstate(divide="ignore", invalid="ignore"):
    ratios = [np.float64(own[name]) / np.float64(other[name]) for name in own]
  return float(np.mean([1.0 if np.isnan(ratio) else ratio for ratio in ratios]))
