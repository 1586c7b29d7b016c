"""How long the training loop stands still for a checkpoint, and how long it takes to be read again.

  make models && python -m benchmarks.save_stall [--rounds=5]

SmolLM2's six-layer student (49 M parameters, 0.59 GB with Adam's moments), 4 x 256 tokens, learnt
from labels. A save copies the state and goes on in the background; while it writes, steps are taken
and timed too.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.cached_training import Run
from benchmarks.table import Row, emit
from configs import smollm2
from kdjax.train.checkpoint import Checkpoints


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5)
  rounds = parser.parse_args().rounds
  config = smollm2.get_config().to_dict()
  config["data"]["max_documents"] = 6
  config["eval"]["batch_size"] = 4
  config |= {"teacher": {}, "objective": {"name": "cross_entropy", "chunk_size": 32}}
  run = Run(config)
  run.step()  # compiles
  stalls, during, waits, resumes = [], [], [], []
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    for step in range(1, rounds + 1):
      run.step()
      started = time.perf_counter()
      checkpoints.save(step, run.state, {}, None)
      stalls.append(time.perf_counter() - started)
      run.step()
      during.append(run.seconds.pop())
      started = time.perf_counter()
      checkpoints.wait()
      waits.append(time.perf_counter() - started)
      started = time.perf_counter()
      shapes = run.compiled.abstract_state._asdict()
      restored = checkpoints.restore(shapes, run.compiled.state_shardings._asdict())
      jax.block_until_ready(restored.items)
      resumes.append(time.perf_counter() - started)
    checkpoints.close()
  step = statistics.median(run.seconds[1:])
  beside = "a step"
  emit(
    [
      Row("save: the loop stands still", statistics.median(stalls), step, "s", beside, 1.0),
      Row("the step during which it is written", statistics.median(during), step, "s", beside),
      Row("left to write after that step", statistics.median(waits), step, "s", beside),
      Row("reading the checkpoint", statistics.median(resumes), step, "s", beside),
    ]
  )


if __name__ == "__main__":
  main()
