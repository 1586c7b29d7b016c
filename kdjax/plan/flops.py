"""Operations of a traced function: its matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def count(jaxpr: Any) -> int:
  """Multiplications and additions in the products of a jaxpr, over all devices together.

  A scan counts as often as it runs, of a `cond` the dearest branch, and a `while_loop` once, since
  how often it runs is not known. What is computed again in a backward pass counts again.

  Args:
    jaxpr: a `Jaxpr` or `ClosedJaxpr`, such as `jax.jit(f).trace(...).jaxpr`.

  Returns:
    Two for each multiplication and its addition. Other operations are left out.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
  inner = [count(each) for each in _inside(params)]
  if name == "cond":
    return max(inner)
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "shard_map":  # written for one device
    return params["mesh"].size * sum(inner)
  return sum(inner)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
  for value in params.values():
    for each in value if isinstance(value, list | tuple) else (value,):
      if hasattr(each, "eqns") or hasattr(getattr(each, "jaxpr", None), "eqns"):
        yield each
