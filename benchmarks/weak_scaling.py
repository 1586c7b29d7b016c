"""A step on 1, 2, 4 and 8 devices with as many rows for each, by its compiled program.

  make models && python -m benchmarks.weak_scaling [--compiler=auto] [--chip=v5e]

Nothing runs: the bound of the step's time and the memory of a device come from `kdjax.plan`, for
`configs/smollm2.py` with its weights repeated (data) and split (fsdp). Where libtpu is installed
its compiler is asked.
"""

import argparse
import os

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
  " --xla_backend_optimization_level=0"
)

import jax

from benchmarks.table import Row, emit
from configs import smollm2
from kdjax.plan.chips import CHIPS
from kdjax.plan.compilers import choose, devices_of
from kdjax.plan.plan import lay_out, parse_mesh, plan

ROWS = 8  # for each device


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--compiler", default="auto")
  parser.add_argument("--chip", default="v5e", choices=CHIPS)
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  compiler = choose(arguments.compiler, arguments.chip)
  print(f"compiled for {compiler}; {arguments.chip}")
  alone = None
  for axis in ("data", "fsdp"):
    for count in (1, 2, 4, 8):
      if count == 1 and alone is not None:
        continue
      config = smollm2.get_config()
      config.data.max_documents = 100
      config.batch_size = config.eval.batch_size = ROWS * count
      devices = devices_of(compiler, arguments.chip, count)
      sizes = parse_mesh(f"{axis}:{count}")
      found = plan(lay_out(config.to_dict(), sizes, devices), CHIPS[arguments.chip])
      alone = alone or found
      steps, memory = (found.step_seconds, alone.step_seconds), (found.total, alone.total)
      sending = found.seconds["network"], found.seconds["compute"]
      name = f"{axis}:{count}, {ROWS} rows a device"
      emit(
        [
          Row(f"{name}: least time of a step", *(1e3 * s for s in steps), "ms", "one device"),
          Row(f"{name}: sending", *(1e3 * s for s in sending), "ms", "its products"),
          Row(f"{name}: memory", *(each / 1e9 for each in memory), "GB", "one device"),
        ]
      )


if __name__ == "__main__":
  main()
