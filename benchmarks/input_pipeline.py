"""What a batch costs the host beside the step that reads it.

  make models && python -m benchmarks.input_pipeline [--steps=30]

Batches are asked for as fast as they come, without a step beside them, then placed on the device;
"step" is the compiled step alone. What is read ahead while the device works costs the loop nothing
as long as the ratio is below one.
"""

import argparse
import statistics
import time

import jax

from benchmarks.table import Row, emit
from configs import digits_kd, smollm2, tinyvit
from kdjax.train.build import build_program
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from kdjax.train.streams import load_data, open_data


def text():
  """SmolLM2's student on packed text, learnt from labels."""
  config = smollm2.get_config().to_dict()
  config["data"]["max_documents"] = 100
  return config | {"teacher": {}, "objective": {"name": "cross_entropy", "chunk_size": 32}}


def digits():
  """The quickest step of all on images that are not augmented."""
  return digits_kd.get_config().to_dict() | {
    "teacher": {},
    "objective": {"name": "cross_entropy"},
  }


def augmented():
  """TinyViT's images with random crops, RandAugment, erasing and mixup."""
  return tinyvit.get_config().to_dict() | {"teacher": {}, "objective": {"name": "cross_entropy"}}


CASES = {
  "4 x 256 tokens, packed": text,
  "digits as they are": digits,
  "digits with TinyViT's augmentation": augmented,
}


def measure(config, steps: int) -> tuple[float, float]:
  """(seconds for a batch, seconds for a step), medians."""
  data, mesh = load_data(config["data"]), make_mesh(data=1)
  program, _ = build_program(config, data.whole, None)
  stream = open_data(config, data, mesh, program.streams).stream
  batch = next(stream)
  compiled = compile_program(program, mesh, batch)
  frozen = jax.device_put(program.frozen, compiled.frozen_shardings)
  state = compiled.init(jax.random.key(0))
  placed = place(batch, compiled.batch_sharding)
  stepped = []
  for _ in range(steps):
    started = time.perf_counter()
    state, _ = compiled.step(state, frozen, placed)
    jax.block_until_ready(state)
    stepped.append(time.perf_counter() - started)
  # Read ahead during the steps were a few at most: so many batches in a row have to be made.
  started = time.perf_counter()
  for _ in range(steps):
    jax.block_until_ready(place(next(stream), compiled.batch_sharding))
  return (time.perf_counter() - started) / steps, statistics.median(stepped[1:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=30)
  steps = parser.parse_args().steps
  for name, config in CASES.items():
    own, step = measure(config(), steps)
    emit([Row(f"a batch of {name}", 1e3 * own, 1e3 * step, "ms", "its step", 1.0)])


if __name__ == "__main__":
  main()
