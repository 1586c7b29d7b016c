"""A step of training from a cache beside one of plain cross-entropy, SmolLM2's six-layer student.

  make models && python -m benchmarks.cached_training

4 x 256 tokens with their data. The cache, of a few documents, is made first. Steps are taken in
turn, so that what else the machine does falls on all alike; figures are medians.
"""

import copy
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.table import Row, emit
from configs import smollm2
from kdjax.train.build import build_program
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from kdjax.train.pretrained import build_teacher
from kdjax.train.streams import load_data, open_data

STEPS = 10
LOSSES = {
  "sampled": {"loss": "sparse_cross_entropy"},
  "top_k": {"loss": "sparse_forward_kl", "tail": "bucket"},
  "hidden": {"loss": "forward_kl"},
}


class Run:
  """A program with its data, one step at a time."""

  def __init__(self, config):
    data = load_data(config["data"])
    teacher = build_teacher(config, data.whole) if config["teacher"] else None
    program, _ = build_program(config, data.whole, teacher)
    mesh = make_mesh(data=1)
    self.stream = open_data(config, data, mesh, program.streams).stream
    self.compiled = compile_program(program, mesh, next(self.stream))
    self.frozen = jax.device_put(program.frozen, self.compiled.frozen_shardings)
    self.state = self.compiled.init(jax.random.key(0))
    self.seconds = []

  def step(self) -> None:
    start = time.perf_counter()
    batch = place(next(self.stream), self.compiled.batch_sharding)
    self.state, _ = self.compiled.step(self.state, self.frozen, batch)
    jax.block_until_ready(self.state)
    self.seconds.append(time.perf_counter() - start)


def main() -> None:
  config = smollm2.get_config().to_dict()
  config["data"]["max_documents"] = 6
  config["eval"]["batch_size"] = 4
  plain = copy.deepcopy(config)
  plain |= {"teacher": {}, "objective": {"name": "cross_entropy", "chunk_size": 32}}
  runs = {"cross-entropy": Run(plain)}
  with tempfile.TemporaryDirectory() as folder:
    for kind, loss in LOSSES.items():
      manifest = cache_teacher(open_session(config, CacheOptions(kind=kind)), Path(folder) / kind)
      own = copy.deepcopy(config)
      own["teacher"] |= {"kind": "cached", "cache": str(Path(folder) / kind), "model": {}}
      own["objective"] = {"name": "logit_kd", "chunk_size": 32} | loss
      runs[f"{kind} ({manifest.bytes_per_position:.0f} bytes a token)"] = Run(own)
    for _ in range(STEPS + 1):  # the first compiles
      for run in runs.values():
        run.step()
  medians = {name: statistics.median(run.seconds[1:]) for name, run in runs.items()}
  for name, seconds in medians.items():
    ratio = medians["cross-entropy"] / seconds
    print(f"{name:32s} {seconds:7.3f} s a step, speed / cross-entropy {ratio:.3f}")
    if name != "cross-entropy":
      emit([Row(f"learning from {name}", seconds, medians["cross-entropy"], "s", "from labels")])


if __name__ == "__main__":
  main()
