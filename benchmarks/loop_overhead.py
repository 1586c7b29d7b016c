"""What the training loop costs over the bare compiled step.

  python -m benchmarks.loop_overhead

Everything is measured in one process, in turn, several times; ratios are of medians.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.table import Row, emit
from configs import fashion_mnist_kd
from kdjax import teachers
from kdjax.data import arrays
from kdjax.data.pipeline import evaluation_batches, training_stream
from kdjax.train import build
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.loop import Data, Schedule, compile_program, run
from kdjax.train.mesh import make_mesh, place

STEPS, ROUNDS = 300, 5


def image_program():
  """The program of `configs/fashion_mnist_kd.py` with a random teacher, and random images."""
  config = fashion_mnist_kd.get_config().to_dict()
  key = jax.random.key(0)
  images = jax.device_get(jax.random.uniform(key, (6000, 28, 28, 1)))
  labels = jax.device_get(jax.random.randint(key, (6000,), 0, 10))
  data = arrays(images, labels, images[:500], labels[:500])
  model = build.build_model(config["teacher"]["model"], data, "config.teacher.model")
  teacher = teachers.frozen(model, model.init(jax.random.key(1)))
  program, _ = build.build_program(config, data, teacher)
  return program, data, config["batch_size"]


def loop_overhead() -> tuple[float, float, float]:
  """Median milliseconds a step: bare, with reading and placing each batch, in the training loop."""
  program, data, batch_size = image_program()
  mesh = make_mesh(data=1)
  bare, fed, looped = [], [], []
  stream = training_stream(data.train, batch_size=batch_size, seed=0)
  batch = next(stream)
  for _ in range(ROUNDS):
    compiled = compile_program(program, mesh, batch)
    placed = place(batch, compiled.batch_sharding)
    frozen = jax.device_put(program.frozen, compiled.frozen_shardings)
    state = compiled.init(jax.random.key(0))
    state, _ = compiled.step(state, frozen, placed)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(STEPS):
      state, _ = compiled.step(state, frozen, placed)
    jax.block_until_ready(state)
    bare.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(STEPS):
      state, _ = compiled.step(state, frozen, place(next(stream), compiled.batch_sharding))
    jax.block_until_ready(state)
    fed.append(time.perf_counter() - start)
    looped.append(timed_loop(program, data, batch_size, mesh))
  return tuple(1e3 * statistics.median(times) / STEPS for times in (bare, fed, looped))


class Timed:
  """A stream that notes when its second and its last batch are asked for."""

  def __init__(self, stream):
    self.stream, self.times = stream, []

  def __next__(self):
    self.times.append(time.perf_counter())
    return next(self.stream)

  def get_state(self):
    return self.stream.get_state()

  def set_state(self, state):
    self.stream.set_state(state)
    self.times = []


def timed_loop(program, data, batch_size, mesh) -> float:
  """Seconds for STEPS steps inside the loop: data, metrics and log, no evaluation, no save."""
  folder = Path(tempfile.mkdtemp())
  stream = Timed(training_stream(data.train, batch_size=batch_size, seed=0))
  steps = STEPS + 2  # the first compiles, the last saves
  try:
    run(
      program,
      Data(stream, lambda: evaluation_batches(data.test, batch_size=500), lambda: ()),
      mesh,
      Schedule(steps, log_every=20, eval_every=10**9, save_every=10**9),
      Checkpoints(folder / "checkpoints"),
      workdir=folder,
      seed=0,
      meta={},
      matches=lambda meta: None,
    )
  finally:
    shutil.rmtree(folder)
  return stream.times[-1] - stream.times[1]


if __name__ == "__main__":
  bare, fed, looped = loop_overhead()
  print(f"ms a step: compiled step {bare:.2f}, with its data {fed:.2f}, in the loop {looped:.2f}")
  print(
    f"time of the loop / of a step with its data: {looped / fed:.3f},"
    f" / of a bare step: {looped / bare:.3f}"
  )
  emit(
    [
      Row("the training loop, Fashion-MNIST", looped, fed, "ms", "step with its data", 1.02),
      Row("the training loop, Fashion-MNIST, over all", looped, bare, "ms", "bare step"),
    ]
  )
