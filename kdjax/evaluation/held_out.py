"""Accuracy where the labels of some classes were held out: zero-shot, and by a few examples."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError

Pair = tuple[Array, Array]


def base_and_novel(
  logits: Float[Array, "*batch classes"],
  labels: Int[Array, "*batch"],
  novel: Sequence[int],
  where: Bool[Array, "*batch"] | None = None,
) -> dict[str, Pair]:
  """Accuracy among the base classes and among the novel ones, each against its own kind only.

  Args:
    logits: [..., V].
    labels: [...], negative where unknown, which does not count.
    novel: the held-out classes, at least one and not all.
    where: [...], True = counted; None counts all.

  Returns:
    (sum, count) of `base_accuracy` and `novel_accuracy`; `finalize` adds their `harmonic_mean`.

  Raises:
    KdjaxError: novel classes that do not exist, none, or nothing else.

  Example:
    >>> logits = jnp.array([[3.0, 1.0, 9.0], [0.0, 0.0, 1.0]])
    >>> pairs = base_and_novel(logits, jnp.array([0, 2]), novel=[2])
    >>> [float(num / den) for num, den in pairs.values()]
    [1.0, 1.0]

  Reference:
    Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022,
    https://arxiv.org/abs/2203.05557 (generalisation from base to novel classes).
  """
  held = _mask(novel, logits.shape[-1])
  where = jnp.ones(labels.shape, bool) if where is None else where
  pairs = {}
  for name, own in (("base", ~held), ("novel", held)):
    asked = jnp.broadcast_to(jnp.asarray(own), logits.shape)
    found = jnp.where(asked, logits.astype(jnp.float32), -jnp.inf).argmax(-1)
    counted = where & (labels >= 0) & jnp.asarray(own)[jnp.maximum(labels, 0)]
    right = (found == labels) & counted
    pairs[f"{name}_accuracy"] = (right.sum(dtype=jnp.float32), counted.sum(dtype=jnp.float32))
  return pairs


def harmonic_mean(a: float, b: float) -> float:
  """2ab / (a + b), 0 where both are 0."""
  return 2 * a * b / (a + b) if a + b > 0 else 0.0


def retrieved(
  logits: Float[Array, "batch classes"],
  features: Float[Array, "batch width"],
  support: Float[Array, "shot width"],
  support_labels: Int[Array, "shot"],
  *,
  alpha: float = 1.0,
  beta: float = 5.5,
) -> Float[Array, "batch classes"]:
  r"""Logits helped by a few labelled examples, without training.

  Adds to class c :math:`\alpha \sum_m e^{-\beta (1 - f \cdot f_m)}` over the support examples m of
  that class.

  Args:
    logits: [B, V], zero-shot.
    features: [B, D] of length 1.
    support: [M, D] of length 1, of the labelled examples.
    support_labels: [M], 0 .. V-1.
    alpha: weight of what is added.
    beta: how fast it falls with distance.

  Returns:
    float32 [B, V].

  Example:
    >>> f = jnp.array([[1.0, 0.0]])
    >>> print(retrieved(jnp.zeros((1, 2)), f, f, jnp.array([1])))
    [[0. 1.]]

  Reference:
    Zhang et al., "Tip-Adapter", ECCV 2022, https://arxiv.org/abs/2111.03930, as used by
    xuanlinli17/large_vlm_distillation_ood (main_experiments.py, which adds it to cosines that are
    not divided by the temperature).
  """
  near = jnp.exp(-beta * (1 - features.astype(jnp.float32) @ support.astype(jnp.float32).T))
  of_class = (support_labels[:, None] == jnp.arange(logits.shape[-1])[None]).astype(jnp.float32)
  return logits.astype(jnp.float32) + alpha * near @ of_class


def _mask(novel: Sequence[int], classes: int) -> np.ndarray:
  """bool [V], True where novel."""
  chosen = sorted(set(novel))
  if not chosen or chosen[0] < 0 or chosen[-1] >= classes or len(chosen) == classes:
    raise KdjaxError(
      f"novel = {list(novel)} must be some of the classes 0 .. {classes - 1}, and not all"
    )
  return np.isin(np.arange(classes), chosen)
