"""Tells what a step of a config will need on chips that are not there, before they are paid for.

python -m launch.plan --config=configs/digits_kd.py --mesh=data:4,fsdp:2 --chip=v5e

Compiles the step for devices that are not there: bytes by part, what is sent, a bound of the time,
and other layouts of as many chips. No weight is read. See docs/plan.md.
"""

import json
import math
import os
import re
import sys

import jax
from absl import flags

from kdjax.errors import KdjaxError
from kdjax.plan.chips import chip_of
from kdjax.plan.compilers import choose, devices_of
from kdjax.plan.plan import Layout, lay_out, layouts, parse_mesh, plan
from kdjax.plan.table import as_json, format_plan, format_table
from kdjax.train.mesh import own_sizes
from launch import main

MESH = flags.DEFINE_string("mesh", None, "sizes of the mesh's axes, such as data:16,fsdp:16")
CHIP = flags.DEFINE_string("chip", "v5e", "v4, v5e, v5p, v6e, A100-80G, H100 or H200")
COMPILER = flags.DEFINE_string(
  "compiler",
  "auto",
  "whose: tpu (that for TPUs, of the package libtpu), cpu (simulated devices), here (this machine's"
  " devices); auto takes tpu for a TPU where libtpu is installed, else cpu",
)
JSON = flags.DEFINE_bool("json", False, "print JSON instead of tables")
ALTERNATIVES = flags.DEFINE_bool("alternatives", True, "compile other layouts too")


def job(config, stop) -> None:
  sizes, chip = parse_mesh(MESH.value), chip_of(CHIP.value)
  wanted = layouts(sizes) if ALTERNATIVES.value else {"asked for": Layout(sizes)}
  compiler = choose(COMPILER.value, CHIP.value)
  if compiler == "tpu":  # whose programs JAX cannot read back
    jax.config.update("jax_enable_compilation_cache", False)
  devices = devices_of(compiler, CHIP.value, math.prod(sizes.values()))
  if theirs := own_sizes(config):
    # A program of its own, so that its devices may be simulated by those of the student.
    wanted_by_teacher = math.prod(theirs.values())
    more = devices_of(compiler, CHIP.value, wanted_by_teacher)
    if len(more) < wanted_by_teacher:  # simulated before the config's file is read
      raise KdjaxError(
        f"config.teacher.mesh = {theirs} wants {wanted_by_teacher} devices and {len(more)} are"
        " simulated; give its sizes as flags, such as --config.teacher.mesh.tensor=8"
      )
    devices = [*devices[: math.prod(sizes.values())], *more[:wanted_by_teacher]]
  plans, refused = {}, {}
  for name, own in wanted.items():
    try:
      plans[name] = plan(lay_out(config | own.changes, own.sizes, devices), chip)
      if len(plans) == 1 and not JSON.value:
        print(format_plan(plans[name], CHIP.value, chip, compiler), flush=True)
    except KdjaxError as error:
      if not plans:  # what was asked for
        raise
      refused[name] = str(error)
  if JSON.value:
    shown = {name: as_json(each, chip) for name, each in plans.items()}
    told = {"chip": CHIP.value, "compiler": compiler, "plans": shown, "refused": refused}
    print(json.dumps(told, indent=2))
  elif len(wanted) > 1:
    print(f"\n{format_table(plans, refused, chip)}")


def simulate(arguments: list[str]) -> None:
  """Makes JAX simulate as many devices as --mesh asks for; before its first use of a device."""
  if re.search(r"(?:^|\s)--?compiler[=\s]here\b", " ".join(arguments)):
    return
  text = " ".join(arguments)
  given = re.findall(r"(?:^|\s)--?mesh[=\s](\S+)", text)
  try:
    devices = math.prod(parse_mesh(given[-1]).values()) if given else 1
  except KdjaxError:  # told once flags are read
    devices = 1
  theirs = re.findall(r"--?config\.teacher\.mesh\.\w+[=\s](\d+)", text)
  devices = max(devices, math.prod(int(size) or 1 for size in theirs))
  # The machine's own code is never run, so it need not be good.
  asked = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {asked}"
  jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
  simulate(sys.argv[1:])
  main.run(job, required=["mesh"])
