"""What a chip holds and how fast it is, as its maker says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kdjax.errors import KdjaxError
from kdjax.resolve import hint

GB, GIB = 10**9, 2**30


class Chip(NamedTuple):
  """One accelerator chip.

  Attributes:
    memory: bytes.
    flops: bfloat16 operations a second without sparsity, at most.
    bandwidth: bytes a second between the chip and its memory.
    network: bytes a second that the chip sends to its neighbours, over all its links together; half
      of what is called bidirectional.
  """

  memory: int
  flops: float
  bandwidth: float
  network: float


CHIPS: Mapping[str, Chip] = {
  # cloud.google.com/tpu/docs/v4: 32 GiB, 275 TFLOPs, 1200 GBps; six links, 2400 Gbps
  "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9),
  # cloud.google.com/tpu/docs/v5e: 16 GB, 197 TFLOPs, 819 GBps; four links, 1600 Gbps
  "v5e": Chip(16 * GB, 197e12, 819e9, 200e9),
  # cloud.google.com/tpu/docs/v5p: 95 GB, 459 TFLOPs, 2765 GBps; 4800 Gbps
  "v5p": Chip(95 * GB, 459e12, 2765e9, 600e9),
  # cloud.google.com/tpu/docs/v6e: 32 GB, 918 TFLOPs, 1600 GBps; four links, 3200 Gbps
  "v6e": Chip(32 * GB, 918e12, 1600e9, 400e9),
  # nvidia.com/en-us/data-center/a100, SXM: 80 GB, 312 TFLOPS, 2039 GB/s; NVLink 600 GB/s, both ways
  "A100-80G": Chip(80 * GB, 312e12, 2039e9, 300e9),
  # nvidia.com/en-us/data-center/h100, SXM: 80 GB, 1979 TFLOPS with sparsity, 3.35 TB/s; NVLink 900
  "H100": Chip(80 * GB, 989.5e12, 3350e9, 450e9),
  # nvidia.com/en-us/data-center/h200, SXM: 141 GB, 1979 TFLOPS with sparsity, 4.8 TB/s; NVLink 900
  "H200": Chip(141 * GB, 989.5e12, 4800e9, 450e9),
}


def chip_of(name: str) -> Chip:
  """The chip of a name; raises KdjaxError with the nearest one where there is none."""
  if name not in CHIPS:
    raise KdjaxError(f"--chip = {name!r} is not known{hint(name, CHIPS)}")
  return CHIPS[name]
