"""A job of a few seconds that writes down which examples each step was given.

--config=tests/faults/job.py:FOLDER reads the ArrayRecord files of a folder; without one, the
bundled digits. What is written down goes to the file in $KDJAX_SEEN; an image whose index is
$KDJAX_POISON makes the loss infinite.
"""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import objectives
from tests.faults import records

EVERY = 15
HINTON_KD = objectives.hinton_kd


def get_config(folder: str = ""):
  """120 steps of 8 images, a checkpoint every 15; each image comes at most once."""
  objectives.hinton_kd = noted_kd
  config = records.get_config(folder) if folder else records.get_config("nowhere")
  if not folder:
    config.data.name, config.data.path = "digits", ""
    del config.data.num_classes
  config.checkpoint.every, config.checkpoint.keep_last = EVERY, 1000
  config.eval.every, config.eval.log_every = 60, 1
  config.objective = {"name": "hinton_kd", "temperature": 4.0}
  return config


def noted_kd(*, temperature: float) -> objectives.Objective:
  """`hinton_kd` that writes down what it is given."""
  inner = HINTON_KD(temperature=temperature)
  poison, path = os.environ.get("KDJAX_POISON"), os.environ.get("KDJAX_SEEN")

  def apply(variables, student, teacher, batch, *, step, rng):
    found = inner.apply(variables, student, teacher, batch, step=step, rng=rng)
    if path:
      jax.debug.callback(functools.partial(_note, path), step, batch["index"])
    if poison is None:
      return found
    bad = jnp.where(jnp.any(batch["index"] == int(poison)), jnp.inf, 0.0)
    name, term = next(iter(found.loss.items()))
    return found._replace(loss={**found.loss, name: term._replace(values=term.values + bad)})

  return inner._replace(apply=apply)


def _note(path, step, index):
  row = json.dumps([int(np.max(step)), np.ravel(index).tolist()])
  with open(path, "a") as file:  # one short write, which a kill leaves whole or out
    file.write(f"{row}\n")
