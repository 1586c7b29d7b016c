"""How programs are compiled, and what they need of a CPU's memory beside their arrays."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict[str, Any]:
  """Options of the compiler for the devices of a mesh.

  On CPUs XLA orders a program so that many operations could run at once, for which it keeps more
  arrays alive. Each of a model's products fills all cores by itself, so the order that needs the
  least memory is asked for: the same values from up to a quarter less temporary memory.
  """
  if mesh.devices.flat[0].platform != "cpu":
    return {}
  return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def jit_on(mesh: Mesh, function: Callable, **layout) -> Callable:
  """`jax.jit` for the devices of a mesh; `layout` holds its shardings and donations."""

  @functools.wraps(function)
  def traced(*args):
    # What is written for a single device asks here whether it has one.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return jax.jit(traced, compiler_options=compiler_options(mesh), **layout)


def compile_ahead(function: Callable[..., Any], *arguments: Any) -> Any:
  """Compiles a jitted function for its first call, and gives back what that and its loading used.

  The memory that reading and compiling a model take (some 200 MB) stays with the process otherwise,
  on top of everything that the step then needs.

  Returns:
    What the compiler plans to hold, as `jax.stages.Compiled.memory_analysis` has it.
  """
  give_back()
  plan = function.lower(*arguments).compile().memory_analysis()
  give_back()
  return plan


def give_back() -> None:
  """Returns freed memory to the system, where the C library has a call for it."""
  gc.collect()
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (AttributeError, OSError):  # not glibc
    return
