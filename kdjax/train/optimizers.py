"""Optimisers from config: optax transformations with groups, masks, schedules and clipping."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from kdjax.errors import KdjaxError
from kdjax.resolve import check_type, hint

PyTree = Any
__all__ = ["adam", "adamw", "sgd"]
DECAYED = ("kernel", "embedding")  # weights by their last name; biases, scales and scalars are not


def adamw(
  *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay on kernels and embeddings."""
  return optax.chain(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay, mask=_decayed),
  )


def adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
  """Adam."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def sgd(
  *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """Momentum; weight decay on kernels and embeddings enters the momentum, as in PyTorch's SGD."""
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=_decayed),
    optax.trace(decay=momentum, nesterov=nesterov),
  )


def schedule(
  learning_rate: float, *, kind: str, total_steps: int, warmup_steps: int
) -> optax.Schedule:
  """Linear warm-up from 0, then constant, linear or cosine decay to 0, or steps.

  "steps" divides the rate by 10 after 5/8, 6/8 and 7/8 of the run: 150, 180 and 210 of the 240
  epochs that most image distillation papers train.

  Raises:
    KdjaxError: an unknown kind, a rate that is not positive, or a warm-up longer than the run.
  """
  if not 0 < learning_rate < math.inf:
    raise KdjaxError(f"config.optimizer.learning_rate = {learning_rate} must be positive")
  if not 0 <= warmup_steps <= total_steps:
    raise KdjaxError(
      f"config.optimizer.warmup_steps = {warmup_steps} must lie in 0..config.total_steps"
      f" = {total_steps}"
    )
  after = max(total_steps - warmup_steps, 1)
  kinds = {
    "constant": lambda: optax.constant_schedule(learning_rate),
    "linear": lambda: optax.linear_schedule(learning_rate, 0.0, after),
    "cosine": lambda: optax.cosine_decay_schedule(learning_rate, after),
    "steps": lambda: optax.piecewise_constant_schedule(
      learning_rate, {after * eighths // 8: 0.1 for eighths in (5, 6, 7)}
    ),
  }
  if kind not in kinds:
    raise KdjaxError(f"config.optimizer.schedule = {kind!r} does not exist{hint(kind, kinds)}")
  if warmup_steps == 0:
    return kinds[kind]()
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, kinds[kind]()], [warmup_steps])


def make_optimizer(
  direction: optax.GradientTransformation,
  rate: optax.Schedule,
  *,
  clip_norm: float | None = None,
  groups: Sequence[Mapping[str, Any]] = (),
) -> optax.GradientTransformation:
  """Chains clipping, an update direction, the learning rate and parameter groups.

  Args:
    direction: such as `adamw()`.
    rate: learning rate by step.
    clip_norm: global norm above which gradients are scaled down; None does not clip.
    groups: mappings with `pattern`, a regular expression searched in a parameter's path (as
      "student/head/kernel" or "objective/..."), and `scale`, which multiplies its learning rate (0
      freezes it: no update, no decay). The first match counts.

  Returns:
    The transformation, over `{"student": params, "objective": params}`.

  Raises:
    KdjaxError: a group without pattern or scale, or with a pattern that is not valid; and, when
      parameters are first seen, a pattern that matches none.
  """
  compiled = [_group(group, index) for index, group in enumerate(groups)]
  if clip_norm is not None and not clip_norm > 0:
    raise KdjaxError(f"config.optimizer.clip_norm = {clip_norm} must be positive, or None")
  parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  parts += [direction, optax.scale_by_learning_rate(rate)]
  if compiled:
    parts += [_scale_groups(compiled)]
  return optax.chain(*parts)


def _group(group: Mapping[str, Any], index: int) -> tuple[re.Pattern, float]:
  field = f"config.optimizer.groups[{index}]"
  if not isinstance(group, Mapping) or set(group) != {"pattern", "scale"}:
    raise KdjaxError(f"{field} must have the fields pattern and scale; it is {group!r}")
  check_type(group["pattern"], str, f"{field}.pattern")
  check_type(group["scale"], float, f"{field}.scale")
  try:
    return re.compile(group["pattern"]), float(group["scale"])
  except re.error as error:
    raise KdjaxError(f"{field}.pattern = {group['pattern']!r} is not valid: {error}") from None


def path_name(path) -> str:
  """A leaf's path as "student/head/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _decayed(params: PyTree) -> PyTree:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path_name(path).rpartition("/")[2] in DECAYED, params
  )


def _scale_groups(groups: Sequence[tuple[re.Pattern, float]]) -> optax.GradientTransformation:
  def factor(path) -> float:
    return next((scale for pattern, scale in groups if pattern.search(path_name(path))), 1.0)

  def init(params):
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for index, (pattern, _) in enumerate(groups):
      # optax asks what a state is like with a stand-in that has no parameters.
      if names and not any(pattern.search(name) for name in names):
        raise KdjaxError(
          f"config.optimizer.groups[{index}].pattern = {pattern.pattern!r} matches no parameter;"
          f" there are {', '.join(names)}"
        )
    return optax.EmptyState()

  def update(updates, state, params=None):
    scaled = jax.tree_util.tree_map_with_path(lambda path, u: factor(path) * u, updates)
    return scaled, state

  return optax.GradientTransformation(init, update)
