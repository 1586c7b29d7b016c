"""A job of a few seconds, as a config file and as a mapping, and ways to start it."""

import os
import subprocess
import sys
from pathlib import Path

from configs import base
from tests import xla

ROOT = Path(__file__).parents[2]
SELF = Path(__file__).relative_to(ROOT)


def get_config():
  """Digits, a teacher of 16 units for 6 steps, a student of 8 for 12, saved every 4."""
  config = base.get_config()
  config.total_steps = 12
  config.batch_size = 32
  config.mesh.data = 1
  config.student = {"name": "mlp", "hidden": (8,)}
  config.teacher.model = {"name": "mlp", "hidden": (16,)}
  config.teacher.train = {"total_steps": 6, "objective": {"name": "cross_entropy"}}
  config.objective = {"name": "hinton_kd", "temperature": 4.0}
  config.checkpoint.every = 4
  config.eval.every = 6
  config.eval.log_every = 2
  return config


def tiny(changes=()):
  """The config as a plain mapping, with changes by path, such as {"optimizer.name": "sgd"}."""
  config = get_config().to_dict()
  for path, value in dict(changes).items():
    *parents, last = path.split(".")
    section = config
    for name in parents:
      section = section[name]
    section[last] = value
  return config


def launch(module, *flags, prefix=()):
  """`PREFIX python -m launch.MODULE FLAGS` from the repository, on one device."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags()}
  return subprocess.run(
    [*prefix, sys.executable, "-m", f"launch.{module}", *map(str, flags)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


def steps(folder):
  """Steps of the finished checkpoints of a run."""
  return sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
