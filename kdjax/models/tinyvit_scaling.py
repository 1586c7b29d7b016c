"""TinyViT's progressive scaling: a large model is contracted step by step into a small one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from kdjax.errors import KdjaxError
from kdjax.models.tinyvit import TinyViTSpec, tinyvit_model

MOST = 20  # contractions in a row
# What a factor may contract: the paper's gamma_D, N, W (of each stage), R, M and E.
FACTORS = ("width", "depth", "window", "expand", "mlp_ratio", "head_dim")


def contract(parent: TinyViTSpec, factors: Mapping[str, float | Sequence[float]]) -> TinyViTSpec:
  """The child of a parent: each size times its factor.

  Depths and windows are rounded to whole numbers of at least 1, widths to multiples of the size of
  a head, which so stays what "head_dim" makes of it.

  Args:
    parent: the larger model.
    factors: of some of `FACTORS`, each in (0, 1]; those of "width", "depth" and "window" may be one
      for each stage. What is left out stays.

  Raises:
    KdjaxError: an unknown factor, or one out of its range.
  """
  stages = len(parent.widths)
  given = {}
  for name in FACTORS:
    value = factors.get(name, 1.0)
    listed = isinstance(value, tuple | list)
    own = list(value) if listed and name in FACTORS[:3] else [value] * stages
    if len(own) != stages or not all(isinstance(x, int | float) and 0 < x <= 1 for x in own):
      raise KdjaxError(
        f"contract: factors[{name!r}] is {value!r}; it must lie in (0, 1], or for width, depth and"
        f" window be {stages} such numbers"
      )
    given[name] = own
  if unknown := set(factors) - set(FACTORS):
    raise KdjaxError(f"contract: no factor {sorted(unknown)[0]!r}; there are {', '.join(FACTORS)}")

  def scaled(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(1, round(f * x)) for f, x in zip(given[name], sizes, strict=True))

  widths, heads = [], []
  for i, (width, number) in enumerate(zip(parent.widths, parent.heads, strict=True)):
    head = max(1, round(width // number * given["head_dim"][i]))
    number = max(1, round(width * given["width"][i] / head))
    widths.append(number * head)
    heads.append(number)
  if widths[0] % 2:  # the stem has half as many
    widths[0] += heads[0]
  return dataclasses.replace(
    parent,
    widths=tuple(widths),
    heads=tuple(heads),
    depths=scaled("depth", parent.depths),
    windows=scaled("window", parent.windows),
    expand=parent.expand * given["expand"][0],
    mlp_ratio=parent.mlp_ratio * given["mlp_ratio"][0],
  )


@functools.cache
def parameters(spec: TinyViTSpec, image_shape: tuple[int, int, int]) -> int:
  """How many parameters a spec's model has; nothing is computed."""
  params = jax.eval_shape(tinyvit_model(spec, image_shape).init, jax.random.key(0)).params
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def neighbours(parent: TinyViTSpec, factor: float) -> Iterator[TinyViTSpec]:
  """Every child that one contraction by `factor` leads to, those of single stages included."""
  stages, seen = len(parent.widths), {parent}
  for name in FACTORS:
    choices: list[float | tuple[float, ...]] = [factor]
    if name in FACTORS[:3]:
      choices += [tuple(factor if i == j else 1.0 for j in range(stages)) for i in range(stages)]
    for choice in choices:
      child = contract(parent, {name: choice})
      if child not in seen:
        seen.add(child)
        yield child


def scale_down(
  parent: TinyViTSpec,
  image_shape: tuple[int, int, int],
  *,
  budgets: Sequence[int],
  score: Callable[[TinyViTSpec], float],
  factor: float = 0.75,
  min_throughput: float = 0.0,
  throughput: Callable[[TinyViTSpec], float] | None = None,
) -> list[TinyViTSpec]:
  """The best model found within each of ever tighter budgets.

  At each step the current model is contracted, all ways at once, until its children meet the
  budget; of these the one with the best score goes on.

  Args:
    parent: where it starts.
    image_shape: (height, width, channels).
    budgets: most parameters at each step, falling.
    score: such as the accuracy after a short training; larger is better.
    factor: of one contraction, in (0, 1).
    min_throughput: what every child must reach; 0 for any.
    throughput: images a second of a spec; wanted where there is a minimum.

  Returns:
    A spec for each budget.

  Raises:
    KdjaxError: budgets that do not fall, a factor out of its range, no child within a budget.
  """
  if list(budgets) != sorted(set(budgets), reverse=True) or not budgets:
    raise KdjaxError(f"scale_down: budgets is {budgets!r}; it must hold falling numbers")
  if not 0 < factor < 1:
    raise KdjaxError(f"scale_down: factor is {factor}; it must lie in (0, 1)")
  if min_throughput > 0 and throughput is None:
    raise KdjaxError("scale_down: min_throughput wants a function as throughput")

  def fits(spec: TinyViTSpec, budget: int) -> bool:
    fast = throughput is None or throughput(spec) >= min_throughput
    return parameters(spec, image_shape) <= budget and fast

  found, current = [], parent
  for budget in budgets:
    # One contraction after the other, until some children meet the budget.
    frontier = [current]
    for _ in range(MOST):
      children = dict.fromkeys(c for spec in frontier for c in neighbours(spec, factor))
      if fitting := [spec for spec in children if fits(spec, budget)]:
        break
      # From the smallest on only: all pairs of contractions would be hundreds of models.
      frontier = sorted(children, key=lambda spec: parameters(spec, image_shape))[:3]
    if not fitting:
      raise KdjaxError(f"scale_down: no contraction has at most {budget} parameters and is so fast")
    current = max(fitting, key=score)
    found.append(current)
  return found
