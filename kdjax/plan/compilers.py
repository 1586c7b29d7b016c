"""Whose compiler a plan asks: that for simulated CPUs, for TPUs that are not there, or for here."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from kdjax.errors import KdjaxError

COMPILERS = ("auto", "cpu", "tpu", "here")
# Chips that lie on a plane (at most 256 of them) or in a cube, one device each.
DIMENSIONS = {"v5e": 2, "v6e": 2, "v5p": 3}
_LARGEST_PLANE = 256
# So that libtpu looks for no TPU, asks no metadata server and is locked against no other process.
_NO_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def choose(name: str, chip: str) -> str:
  """The compiler meant: for "auto" that of TPUs where it is installed and the chip is one.

  Raises:
    KdjaxError: a name that does not exist, or a compiler that cannot be had for the chip.
  """
  if name not in COMPILERS:
    raise KdjaxError(f"--compiler = {name!r} does not exist; what does: {', '.join(COMPILERS)}")
  if name == "auto":
    return "tpu" if chip in DIMENSIONS and _libtpu() else "cpu"
  if name == "tpu" and chip not in DIMENSIONS:
    raise KdjaxError(f"--compiler = 'tpu' compiles for {', '.join(DIMENSIONS)}; --chip = {chip!r}")
  if name == "tpu" and not _libtpu():
    raise KdjaxError("--compiler = 'tpu' wants the package libtpu: pip install libtpu")
  return name


def devices_of(compiler: str, chip: str, count: int) -> Sequence[Any]:
  """So many devices to compile for.

  Args:
    compiler: "cpu", "tpu" or "here".
    chip: a key of `CHIPS`.
    count: devices.

  Returns:
    Those of this machine, simulated or not; or chips of a slice, on which nothing can run.

  Raises:
    KdjaxError: a TPU has no slice of so many chips.
  """
  if compiler != "tpu":
    return jax.devices()
  name, slices = slice_of(chip, count)
  for variable, value in _NO_TPU.items():
    os.environ.setdefault(variable, value)
  more = {"num_slices": slices} if slices > 1 else {}
  # libtpu ends a process whose XLA_FLAGS have one that is not its own, such as those of CPUs. It
  # reads them with its first program, JAX's own compiler with its first device.
  jax.devices()
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
    one = SingleDeviceSharding(devices[0])
    jax.jit(lambda: 0, out_shardings=one).lower().compile()
    return devices
  except RuntimeError as error:
    raise KdjaxError(f"libtpu describes no {name}: {error}; try --compiler=cpu") from error
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


def slice_of(chip: str, count: int) -> tuple[str, int]:
  """The name of a slice, as near to a square or cube as it can be, and how many of them.

  Raises:
    KdjaxError: not a power of two.
  """
  if count & (count - 1):
    raise KdjaxError(f"--mesh has {count} devices; slices of {chip} have a power of two of them")
  dimensions = DIMENSIONS[chip]
  slices = max(count // _LARGEST_PLANE, 1) if dimensions == 2 else 1
  halvings = int(math.log2(count // slices))
  sizes = sorted(2 ** ((halvings + i) // dimensions) for i in range(dimensions))
  if dimensions == 3 and count == 4:
    sizes = [2, 2, 1]  # one host; the only slice that is named largest first
  return f"{chip}:{'x'.join(map(str, sizes))}", slices


def _libtpu() -> bool:
  return bool(os.environ.get("TPU_LIBRARY_PATH")) or importlib.util.find_spec("libtpu") is not None
