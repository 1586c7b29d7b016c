"""Compile time of a training step of 48 layers beside one of 6.

  python -m benchmarks.compile_time [--rounds=3]

Decoders of SmolLM2's sizes, cross-entropy in chunks, AdamW: tracing, lowering and compiling, with
weights as shapes alone. The two take turns; the cache of compiled programs is off.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from benchmarks.table import Row, emit
from kdjax import models, objectives, programs
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh

DEPTHS = 6, 48
SIZES = {"num_classes": 49152, "width": 576, "heads": 9, "kv_heads": 3, "mlp_width": 1536}
ROWS, TOKENS = 4, 256


def seconds(depth: int) -> float:
  """To compile the step of a model so deep."""
  started = time.perf_counter()
  student = models.decoder(depth=depth, **SIZES)
  objective = objectives.cross_entropy(chunk_size=32)
  program = programs.distill(student, objective, optax.adamw(1e-4))
  text = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
  mask = jax.ShapeDtypeStruct((ROWS, TOKENS), bool)
  batch = {"tokens": text, "label": text, "mask": mask}
  compiled = compile_program(program, make_mesh(data=1), batch)
  compiled.step.lower(compiled.abstract_state, program.frozen, batch).compile()
  return time.perf_counter() - started


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  rounds = parser.parse_args().rounds
  jax.config.update("jax_enable_compilation_cache", False)
  seconds(1)  # what is imported or traced once
  pairs = [[seconds(depth) for depth in DEPTHS] for _ in range(rounds)]
  for depth, times in zip(DEPTHS, zip(*pairs, strict=True), strict=True):
    print(f"{depth:2d} layers: {statistics.median(times):.2f} s")
  print("ratios:", ", ".join(f"{deep / shallow:.2f}" for shallow, deep in pairs))
  shallow, deep = (statistics.median(times) for times in zip(*pairs, strict=True))
  emit([Row("compiling 48 layers", deep, shallow, "s", "6 layers")])


if __name__ == "__main__":
  main()
