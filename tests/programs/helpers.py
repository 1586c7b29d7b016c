"""A tiny problem that the tests of programs share: 4x4 images, three classes."""

import functools

import jax
import numpy as np
import optax

from kdjax import models, teachers
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place

SHAPE = {"num_classes": 3, "image_shape": (4, 4, 1)}
STUDENT = models.mlp(hidden=(8,), **SHAPE)
TEACHER_MODEL = models.mlp(hidden=(16, 8), **SHAPE)


@functools.cache
def teacher(seed: int = 100):
  return teachers.frozen(TEACHER_MODEL, TEACHER_MODEL.init(jax.random.key(seed)))


def batch(seed: int = 0, rows: int = 16) -> dict:
  """Random images; a quarter without label, the last two rows padding."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, rows).astype(np.int32)
  label[::4] = -1
  return {
    "image": rng.normal(size=(rows, 4, 4, 1)).astype(np.float32),
    "label": label,
    "index": np.arange(rows, dtype=np.int32),
    "mask": np.arange(rows) < rows - 2,
  }


def trained(program, batches, *, mesh=None, seed: int = 0):
  """(state, list of metrics) after one step per batch, through the compiled program."""
  return runner(program, batches[0], mesh=mesh)(batches, seed=seed)


def runner(program, batch, *, mesh=None):
  """`trained` for many lists of batches like this one, compiled once."""
  mesh = make_mesh(data=1) if mesh is None else mesh
  compiled = compile_program(program, mesh, batch)
  frozen = jax.device_put(program.frozen, compiled.frozen_shardings)

  def run(batches, *, seed: int = 0):
    state = compiled.init(jax.random.key(seed))
    every = []
    for one in batches:
      state, metrics = compiled.step(state, frozen, place(one, compiled.batch_sharding))
      every.append(jax.device_get(metrics))
    return state, every

  return run


def sgd(rate: float = 0.1):
  return optax.sgd(rate)


def close(a, b, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.asarray(x), np.asarray(y), **({"rtol": 1e-5, "atol": 1e-6} | tolerance)
    ),
    a,
    b,
  )
