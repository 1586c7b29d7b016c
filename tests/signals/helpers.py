"""A small cache of made-up signals over made-up rows of tokens."""

import hashlib

import numpy as np

from kdjax.data import Span
from kdjax.signals import Cache, CacheWriter, Spec, codec
from kdjax.signals.records import Record

LENGTH, VOCAB = 12, 300
DATA = {"sequence_length": LENGTH}


def key_of(tokens):
  return hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=16).digest()


class Tokens:
  """Rows of LENGTH positions: two examples and a gap, or one example."""

  def __init__(self, rows=7, seed=0, order=None):
    rng = np.random.default_rng(seed)
    self.tokens = rng.integers(0, VOCAB, (rows, LENGTH))
    self.parts = [[(0, 5), (5, 10)] if row % 3 else [(0, LENGTH)] for row in range(rows)]
    self.order = np.arange(rows) if order is None else np.asarray(order)
    self.labels = np.zeros(rows, np.int32)

  def __len__(self):
    return len(self.order)

  def spans(self, position):
    row = self.order[position]
    return [Span(key_of(self.tokens[row, a:b]), a, b) for a, b in self.parts[row]]

  def read(self, positions):
    rows = self.order[positions]
    return {"tokens": self.tokens[rows].astype(np.int32), "index": rows.astype(np.int32)}


def made_up(key, length, kind="sampled"):
  """Arrays that depend on the key alone."""
  rng = np.random.default_rng(list(key))
  if kind == "sampled":
    return rng.geometric(0.05, (length, 10)) % VOCAB
  if kind == "hidden":
    return rng.normal(size=(length, 4)).astype(np.float32)
  log_p = np.log(rng.dirichlet(np.full(VOCAB, 0.1), length) + 1e-9)
  log_p -= np.logaddexp.reduce(log_p, axis=1, keepdims=True)
  ids = np.argsort(-log_p, axis=1)[:, :6]
  return ids, np.take_along_axis(log_p, ids, axis=1).astype(np.float32)


def record(span, kind="sampled"):
  length = span.stop - span.start
  signal = made_up(span.key, length, kind)
  if kind == "sampled":
    slots = max(len(np.unique(row)) for row in signal)
    return Record(span.key, codec.encode_sampled(signal, vocab=VOCAB), length, slots)
  if kind == "top_k":
    return Record(span.key, codec.encode_top_k(*signal, vocab=VOCAB), length, 6)
  return Record(span.key, codec.encode_hidden(signal, dtype="bfloat16"), length, 0)


def spec_of(source, kind="sampled", **changes):
  fields = {
    "kind": kind,
    "vocab": VOCAB,
    "support": {"sampled": 10, "top_k": 6, "hidden": 4}[kind],
    "temperature": None if kind == "hidden" else 1.0,
    "dtype": "bfloat16" if kind == "hidden" else None,
    "softcap": None,
    "seed": 0 if kind == "sampled" else None,
    "teacher": "t" * 64,
    "tokenizer": "k" * 64,
    "source": "tokens",
    "data": DATA,
    "rows": len(source),
    "rows_per_shard": 2,
  }
  return Spec(**(fields | changes))


def records(writer, source, number):
  kind = writer.spec.kind
  return [record(s, kind) for row in writer.rows_of(number) for s in source.spans(row)]


def write(folder, source, kind="sampled", *, processes=1, **changes):
  """A finished cache."""
  spec = spec_of(source, kind, **changes)
  writers = [CacheWriter(folder, spec, process=p, processes=processes) for p in range(processes)]
  for writer in writers:
    for number in writer.missing():
      writer.write(number, records(writer, source, number))
  if kind == "hidden":
    rng = np.random.default_rng(0)
    writers[0].write_head({"kernel": rng.normal(size=(4, VOCAB)).astype(np.float32)})
  writers[0].finish()
  return Cache(folder)


def files(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
