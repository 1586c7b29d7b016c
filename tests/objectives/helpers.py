"""Small outputs and batches that the tests of objectives share."""

import jax
import jax.numpy as jnp

from kdjax.outputs import Outputs

CLASSES = 5


def outputs(seed: int, rows: int = 8, classes: int = CLASSES, **fields) -> Outputs:
  """Random logits, unless given, with other fields as given."""
  logits = jax.random.normal(jax.random.key(seed), (rows, classes)) * 2
  return Outputs(**({"logits": logits} | fields))


def labelled(rows: int = 8, classes: int = CLASSES) -> dict:
  """Labels 0, 1, 2, ... in turn; the last row is padding."""
  mask = jnp.arange(rows) < rows - 1
  return {"label": jnp.arange(rows) % classes, "mask": mask}


def applied(objective, student, teacher, batch, *, step=0, variables=None):
  """(result, variables) of one call, in one program; the variables are fresh unless given."""

  @jax.jit
  def run(variables, student, teacher, batch, step):
    if variables is None:
      variables = objective.init(jax.random.key(0), student, teacher, batch)
    out = objective.apply(variables, student, teacher, batch, step=step, rng=jax.random.key(1))
    return out, variables

  return run(variables, student, teacher, batch, jnp.int32(step))
