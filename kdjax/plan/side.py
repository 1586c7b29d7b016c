"""What one compiled program on one mesh needs of each device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from kdjax.errors import KdjaxError
from kdjax.plan import flops as flops_lib
from kdjax.plan.chips import Chip
from kdjax.plan.collectives import Collective, collectives


class Side(NamedTuple):
  """A program; bytes and seconds are of one device.

  Attributes:
    mesh: axis to size.
    total: what the compiler plans to hold at once.
    flops: products, over all devices together.
    collectives: what is sent.
    seconds: "compute", "memory" and "network", each if it were alone.
  """

  mesh: dict[str, int]
  total: int
  flops: int
  collectives: list[Collective]
  seconds: dict[str, float]


def side_of(traced: Any, executable: Any, mesh: Mesh, chip: Chip) -> Side:
  """What a traced program needs, and its executable says."""
  found = collectives(executable.as_text(), mesh)
  products, own = flops_lib.count(traced.jaxpr), executable.memory_analysis()
  moved = own.argument_size_in_bytes + own.output_size_in_bytes + 2 * own.temp_size_in_bytes
  seconds = {
    "compute": products / mesh.size / chip.flops,
    "memory": moved / chip.bandwidth,
    "network": sum(each.sent for each in found) / chip.network,
  }
  return Side(dict(mesh.shape), total_bytes(executable), products, found, seconds)


def compile_or_tell(lowered: Any) -> Any:
  """The executable; raises KdjaxError for a program too large, which compilers for TPUs refuse."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise KdjaxError(
      f"the step does not fit: {str(error).splitlines()[0]} Take a smaller config.batch_size,"
      " remat, or more devices along fsdp or tensor"
    ) from error


def total_bytes(executable: Any) -> int:
  """What a compiled program holds at once on each device: what it reads, writes and keeps."""
  own = executable.memory_analysis()
  kept = own.argument_size_in_bytes + own.output_size_in_bytes - own.alias_size_in_bytes
  return kept + own.temp_size_in_bytes + own.generated_code_size_in_bytes
