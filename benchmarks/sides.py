"""One side of a comparison, in a process of its own, by the Python that has what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def ask(python: str, script: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Runs a script with --name=value for each option.

  Returns:
    (the JSON of its last line, the lines of its standard error). Where it fails, so does the whole.
  """
  command = [python, script, *(f"--{name}={value}" for name, value in options.items())]
  # PyTorch's threads would spin while they wait, which on a shared machine costs it most.
  env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
  done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
  if done.returncode:
    sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()
