"""Forward KL with gradient in chunks: its time beside its bare matrix products, and its memory.

  python -m benchmarks.chunked_loss [--tokens=256] [--rounds=5]

Student and teacher hand over states [4, T, 576] and heads of 32,768, 49,152 and 131,072 classes.
The loss must take four products for each position: the logits of both sides, and the student's
gradients by states and head. "bare" takes these four on all positions at once and nothing else.
Memory is what the compiler plans for temporaries: of the loss in chunks at T and at 4 T, and of the
plain loss on one chunk alone.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks.table import Row, emit
from kdjax import losses, objectives
from kdjax.objectives.tokens import token_level
from kdjax.outputs import Head, Outputs
from kdjax.train.memory import compiler_options
from kdjax.train.mesh import make_mesh

ROWS, WIDTH, CHUNK = 4, 576, 64
VOCABULARIES = 32_768, 49_152, 131_072


def arrays(tokens: int, vocab: int) -> tuple[jax.Array, ...]:
  """States and head of the student, then of the teacher."""
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = ((ROWS, tokens, WIDTH), (vocab, WIDTH)) * 2
  return tuple(0.1 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def loss_and_gradient(chunk_size: int | None):
  """The mean forward KL of tied heads, with its gradient by the student's states and head."""
  objective = token_level(losses.forward_kl, chunk_size=chunk_size)

  def loss(hidden, weight, teacher_hidden, teacher_weight):
    sides = []
    for states, matrix in ((hidden, weight), (teacher_hidden, teacher_weight)):
      head = Head(matrix, tied=True)
      logits = head.logits(states) if chunk_size is None else None
      sides.append(Outputs(logits=logits, hidden=states, head=head))
    variables = objective.init(None, *sides, {})
    return objectives.total(objective.apply(variables, *sides, {}, step=0, rng=None))

  return jax.value_and_grad(loss, argnums=(0, 1))


def products(hidden, weight, teacher_hidden, teacher_weight):
  """The four products and nothing else."""
  logits = jnp.einsum("btd,vd->btv", hidden, weight)
  told = jnp.einsum("btd,vd->btv", teacher_hidden, teacher_weight)
  return told, jnp.einsum("btv,vd->btd", logits, weight), jnp.einsum("btv,btd->vd", logits, hidden)


def compiled(fn, *args):
  """The program as the training loop compiles it."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  options = compiler_options(make_mesh(data=1))
  return jax.jit(fn).lower(*shapes).compile(compiler_options=options)


def megabytes(program) -> float:
  return program.memory_analysis().temp_size_in_bytes / 1e6


def seconds(program, *args) -> float:
  started = time.perf_counter()
  jax.block_until_ready(program(*args))
  return time.perf_counter() - started


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=int, default=256)
  parser.add_argument("--chunk_size", type=int, default=CHUNK)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  print(f"{ROWS} x {options.tokens} positions, {options.chunk_size} places of a row in a chunk")
  print(f"{'classes':>8s} {'bare s':>8s} {'loss s':>8s} {'ratio':>6s}   temporaries, MB:")
  print(f"{'':32s}   {'T':>7s} {'4 T':>7s} {'a chunk':>8s} {'ratio':>6s}")
  for vocab in VOCABULARIES:
    args = arrays(options.tokens, vocab)
    chunked = loss_and_gradient(options.chunk_size)
    bare, loss = compiled(products, *args), compiled(chunked, *args)
    seconds(bare, *args), seconds(loss, *args)
    pairs = [(seconds(bare, *args), seconds(loss, *args)) for _ in range(options.rounds)]
    times = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(own / least for least, own in pairs)
    longer = compiled(chunked, *jax.eval_shape(lambda v=vocab: arrays(4 * options.tokens, v)))
    single = compiled(
      loss_and_gradient(None), *jax.eval_shape(lambda v=vocab: arrays(options.chunk_size, v))
    )
    sizes = [megabytes(program) for program in (loss, longer, single)]
    print(
      f"{vocab:8d} {times[0]:8.2f} {times[1]:8.2f} {ratio:6.2f}   {sizes[0]:7.0f} {sizes[1]:7.0f}"
      f" {sizes[2]:8.0f} {sizes[0] / sizes[2]:6.2f}"
    )
    emit(
      [
        Row(f"forward KL, {vocab:,} classes", *reversed(times), "s", "its bare products"),
        Row(f"forward KL, {vocab:,} classes, memory", sizes[0], sizes[2], "MB", "one chunk"),
      ]
    )


if __name__ == "__main__":
  main()
