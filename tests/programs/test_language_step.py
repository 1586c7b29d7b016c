"""What the compiled step of a language model may hold, and the gradient of a tied table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import models, objectives, teachers
from kdjax.programs import distill
from kdjax.programs.distill import global_norm
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh
from tests.programs.helpers import sgd

BATCH, TIME, WIDTH, VOCAB = 2, 32, 8, 1000
MODEL = models.decoder(num_classes=VOCAB, width=WIDTH, depth=1, heads=1, mlp_width=16)
TOKENS = jax.random.randint(jax.random.key(0), (BATCH, TIME), 0, VOCAB)
ROWS = {"tokens": TOKENS, "label": TOKENS, "mask": jnp.ones((BATCH, TIME), bool)}


def sizes_with_a_vocabulary(chunk_size: int | None) -> set[int]:
  """Of every array in the compiled step, forward and backward, with an axis of all classes."""
  teacher = teachers.frozen(MODEL, MODEL.init(jax.random.key(1)))
  program = distill(MODEL, objectives.hinton_kd(chunk_size=chunk_size), sgd(), teacher=teacher)
  compiled = compile_program(program, make_mesh(data=1), ROWS)
  step = compiled.step.lower(compiled.abstract_state, program.frozen, ROWS).compile()
  shapes = [
    [int(d) for d in dims.split(",")] for dims in re.findall(r"\w\[([\d,]+)\]", step.as_text())
  ]
  return {int(np.prod(shape)) for shape in shapes if VOCAB in shape}


def test_the_step_holds_no_array_of_all_positions_and_classes():
  chunk_size = 4
  sizes = sizes_with_a_vocabulary(chunk_size)
  assert max(sizes) == max(WIDTH * VOCAB, BATCH * chunk_size * VOCAB)
  assert BATCH * TIME * VOCAB in sizes_with_a_vocabulary(None)  # it would be seen


def test_the_norm_of_a_gradient_is_that_of_optax():
  tree = {
    "a": jax.random.normal(jax.random.key(3), (5, 7)),
    "b": jnp.full(3, -2.0),
    "c": jnp.ones(()),
  }
  np.testing.assert_allclose(global_norm(tree), optax.global_norm(tree), rtol=1e-6)
  assert global_norm({"a": jnp.full(4, 2.0, jnp.bfloat16)}).dtype == jnp.float32


def test_a_tied_table_gets_the_gradient_of_its_rows_and_of_the_head():
  params = MODEL.init(jax.random.key(2)).params

  def gradient(chunk_size):
    objective = objectives.cross_entropy(chunk_size=chunk_size)

    def loss(params):
      own, _ = MODEL.apply(models.ModelVars(params, {}), ROWS, taps=objective.taps.student)
      return objectives.total(objective.apply((), own, None, ROWS, step=0, rng=None))

    return jax.jit(jax.grad(loss))(params)

  # Only with a chunk size does the model hand over its head, and only then are the two made as one.
  for found, wanted in zip(*map(jax.tree.leaves, (gradient(4), gradient(None))), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
