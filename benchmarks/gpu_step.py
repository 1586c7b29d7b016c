"""A distillation step on one GPU: time, memory and use of the chip, beside PyTorch and Liger.

  python benchmarks/gpu_step.py [--rows=8] [--tokens=2048] [--steps=10] [--rounds=2] [--sides=...]

A language model of SmolLM2-1.7B's form teaches one of SmolLM2-360M's (random weights) by forward KL
over the whole vocabulary. Products are in bfloat16, the student's weights and AdamW in float32, the
teacher's weights in bfloat16. Each side runs in a process of its own, in turn; figures are medians.

What each takes of the GPU's peak counts the same operations for all: two for each weight and token
of the teacher, six of the student, and those of causal attention. Work that is done again to save
memory does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

VOCABULARY = 49152
TEACHER = {"width": 2048, "depth": 24, "heads": 32, "kv_heads": 32, "mlp_width": 8192}
STUDENT = {"width": 960, "depth": 32, "heads": 15, "kv_heads": 5, "mlp_width": 2560}
PEAK = 989.5e12  # H100 and H200 (SXM), bfloat16 without sparsity
SIDES = {  # name: (library, options)
  "kdjax": ("kdjax", {"remat": "none", "attention": "auto"}),
  "kdjax, remat=mlp": ("kdjax", {"remat": "mlp", "attention": "auto"}),
  "kdjax, remat=full": ("kdjax", {"remat": "full", "attention": "auto"}),
  "kdjax, XLA's attention": ("kdjax", {"remat": "mlp", "attention": "xla"}),
  "PyTorch eager": ("pytorch", {"mode": "eager"}),
  "trl's loss": ("pytorch", {"mode": "trl"}),
  "torch.compile": ("pytorch", {"mode": "compile"}),
  "Liger": ("pytorch", {"mode": "liger"}),
}


def products(rows: int, tokens: int) -> float:
  """Operations of a step that nobody can leave out."""

  def forward(width, depth, heads, kv_heads, mlp_width):
    size = width // heads
    layer = width * size * (2 * heads + 2 * kv_heads) + 3 * width * mlp_width
    attention = 2 * tokens * width / 2  # scores and their sums of values, half of them masked
    return 2 * (depth * (layer + attention) + width * VOCABULARY)

  return rows * tokens * (forward(**TEACHER) + 3 * forward(**STUDENT))


def kdjax_step(rows: int, tokens: int, chunk_size: int, remat: str, attention: str):
  """The step as the training loop compiles it, and what the compiler says of its memory."""
  import jax
  import numpy as np
  import optax

  from kdjax import objectives, programs, teachers
  from kdjax.models.pretrained import decoder
  from kdjax.plan.side import total_bytes
  from kdjax.train.loop import compile_program
  from kdjax.train.mesh import make_mesh, place

  options = {"num_classes": VOCABULARY, "dtype": "bfloat16", "attention": attention}
  large = decoder(**TEACHER, max_positions=tokens, **options)
  student = decoder(**STUDENT, max_positions=tokens, remat=remat, **options)
  halves = jax.jit(lambda key: teachers.frozen(large, large.init(key), dtype="bfloat16").frozen)
  teacher = teachers.frozen(large, halves(jax.random.key(1)))
  objective = objectives.logit_kd(loss="forward_kl", chunk_size=chunk_size)
  program = programs.distill(student, objective, optax.adamw(1e-4), teacher=teacher)
  text = np.random.default_rng(1).integers(0, VOCABULARY, (rows, tokens + 1), np.int32)
  batch = {"tokens": text[:, :-1], "label": text[:, 1:], "mask": np.ones((rows, tokens), bool)}
  compiled = compile_program(program, make_mesh(data=1), batch)
  batch = place(batch, compiled.batch_sharding)
  state = compiled.init(jax.random.key(0))
  executable = compiled.step.lower(state, compiled.frozen, batch).compile()

  def run():
    nonlocal state
    state, metrics = compiled.step(state, compiled.frozen, batch)
    return metrics

  def peak():
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
      "peak_gb": stats.get("peak_bytes_in_use", math.nan) / 1e9,
      "compiler_gb": total_bytes(executable) / 1e9,
    }

  return run, lambda metrics: jax.block_until_ready(metrics), peak


def pytorch_step(rows: int, tokens: int, mode: str):
  """The step in PyTorch: eager, compiled, with trl's loss, or with Liger's layers and loss."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)
  device = "cuda" if torch.cuda.is_available() else "cpu"

  def model(width, depth, heads, kv_heads, mlp_width, dtype):
    config = LlamaConfig(
      vocab_size=VOCABULARY,
      hidden_size=width,
      num_hidden_layers=depth,
      num_attention_heads=heads,
      num_key_value_heads=kv_heads,
      intermediate_size=mlp_width,
      max_position_embeddings=tokens,
      tie_word_embeddings=True,
      use_cache=False,
    )
    with torch.device(device):
      return LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)

  if mode == "liger":
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(fused_linear_cross_entropy=False, cross_entropy=False)
  teacher = model(**TEACHER, dtype=torch.bfloat16).eval()
  student = model(**STUDENT, dtype=torch.float32).train()
  optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
  text = torch.randint(0, VOCABULARY, (rows, tokens), device=device)
  half = lambda: torch.autocast(device, torch.bfloat16)  # noqa: E731

  if mode == "liger":
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    fused = LigerFusedLinearJSD(jsd_beta=0.0)  # forward KL

    def loss_of():
      with torch.no_grad():
        known = teacher.model(text).last_hidden_state
      with half():
        own = student.model(text).last_hidden_state
      return fused(
        own.flatten(0, 1).bfloat16(),
        student.lm_head.weight.bfloat16(),
        known.flatten(0, 1),
        teacher.lm_head.weight,
        None,
      )

  else:
    if mode == "trl":
      from trl.experimental.gkd import GKDTrainer

    def divergence(own, known):
      if mode == "trl":
        return GKDTrainer.generalized_jsd_loss(own, known, beta=0.0)
      own, known = (torch.log_softmax(each.float(), -1) for each in (own, known))
      total = torch.nn.functional.kl_div(own, known, log_target=True, reduction="sum")
      return total / text.numel()

    def loss_of():
      with torch.no_grad():
        known = teacher(text).logits
      with half():
        return divergence(student(text).logits, known)

    if mode == "compile":
      loss_of = torch.compile(loss_of)

  def run():
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return loss

  def wait(loss):
    loss.item()

  def peak():
    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else math.nan}

  return run, wait, peak


def measure(arguments) -> None:
  """In a process of its own: two steps to warm up, then timed ones; one line of JSON."""
  library, options = SIDES[arguments.side]
  if library == "kdjax":
    options = {**options, "chunk_size": arguments.chunk_size}
  build = kdjax_step if library == "kdjax" else pytorch_step
  started = time.perf_counter()
  run, wait, peak = build(arguments.rows, arguments.tokens, **options)
  wait(run())
  first = time.perf_counter() - started
  wait(run())
  times = []
  for _ in range(arguments.steps):
    started = time.perf_counter()
    wait(run())
    times.append(time.perf_counter() - started)
  print(json.dumps({"seconds": statistics.median(times), "first": first, **peak()}))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--tokens", type=int, default=2048)
  parser.add_argument("--chunk_size", type=int, default=256, help="places of a row, kdjax")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
  parser.add_argument("--limit", type=int, default=120, help="seconds for one side")
  parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.side:
    measure(arguments)
    return
  found: dict[str, list[dict]] = {side: [] for side in arguments.sides}
  environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  for _ in range(arguments.rounds):
    for side in arguments.sides:
      own = [f"--{k}={getattr(arguments, k)}" for k in ("rows", "tokens", "chunk_size", "steps")]
      try:
        done = subprocess.run(
          [sys.executable, __file__, f"--side={side}", *own],
          capture_output=True,
          text=True,
          check=False,
          env=environment,
          timeout=arguments.limit,
        )
      except subprocess.TimeoutExpired:
        print(f"{side}: not done in {arguments.limit} s", flush=True)
        continue
      if done.returncode:
        print(f"{side} failed:\n{done.stderr[-1500:]}", flush=True)
        continue
      found[side].append(json.loads(done.stdout.splitlines()[-1]))
      print(side, found[side][-1], flush=True)
  work = products(arguments.rows, arguments.tokens)
  size = f"{arguments.rows} x {arguments.tokens} tokens, {work / 1e12:.1f} TFLOPs a step"
  print(f"\n{size}; {arguments.rounds} rounds of {arguments.steps} steps\n")
  print("| side | s | tokens/s | of the peak | GB | first step, s |\n|---|---|---|---|---|---|")
  for side, rounds in found.items():
    if rounds:
      each = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
      tokens = arguments.rows * arguments.tokens / each["seconds"]
      print(
        f"| {side} | {each['seconds']:.3f} | {tokens:,.0f} | {work / each['seconds'] / PEAK:.1%}"
        f" | {each['peak_gb']:.1f} | {each['first']:.0f} |"
      )


if __name__ == "__main__":
  main()
