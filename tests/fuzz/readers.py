"""Every reader of files that may come from elsewhere, as a function of one file's bytes."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from kdjax import data
from kdjax.data import array_record, idx
from kdjax.data.text import documents
from kdjax.data.tokenizers import load_tokenizer
from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, spec_of
from kdjax.signals import Cache
from tests.data.text.helpers import bytes_tokenizer
from tests.models.convert.folders import FOLDER
from tests.models.convert.ggufs import finish
from tests.signals.helpers import Tokens, write

SMALL = {
  "model_type": "llama",
  "vocab_size": 5,
  "hidden_size": 4,
  "intermediate_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 16,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": True,
}


class Reader(NamedTuple):
  """A reader: `read(bytes)` returns, or raises KdjaxError; anything else is a fault of it.

  Attributes:
    seeds: whole files that it reads without an error.
    read: of a file's bytes.
  """

  seeds: list[bytes]
  read: Callable[[bytes], None]


def refuse(reader: Reader, content: bytes) -> bool:
  """Whether a reader refuses a file with its own error; another exception passes through."""
  try:
    reader.read(content)
  except KdjaxError as error:
    assert str(error).strip(), "an error without a message"
    return True
  return False


def safetensors(folder: Path) -> Reader:
  tensors = {"embed": np.zeros((3, 2), np.float32), "norm": np.ones(2, np.float16)}
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name, array in tensors.items():
    kind = {"float32": "F32", "float16": "F16"}[array.dtype.name]
    offsets = [at, at := at + array.nbytes]
    header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
  text = json.dumps(header).encode()
  whole = len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())
  (folder / "config.json").write_text(json.dumps(SMALL))

  def read(content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    _read_all(open_checkpoint(folder))

  return Reader([whole], read)


def safetensors_index(folder: Path) -> Reader:
  shutil.copy(FOLDER / "llama" / "model.safetensors", folder / "a.safetensors")
  (folder / "config.json").write_text(json.dumps(SMALL))

  def read(content: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(content)
    open_checkpoint(folder)

  whole = {"metadata": {}, "weight_map": {"model.norm.weight": "a.safetensors"}}
  return Reader([json.dumps(whole).encode()], read)


def config_json(folder: Path) -> Reader:
  """Of each family, beside the weights that it describes."""
  seeds = [(FOLDER / name / "config.json").read_bytes() for name in ("llama", "gpt2", "bert", "t5")]
  shutil.copy(FOLDER / "llama" / "model.safetensors", folder / "model.safetensors")

  def read(content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    checkpoint = open_checkpoint(folder)
    spec_of(checkpoint.config, checkpoint.names)

  return Reader(seeds, read)


def gguf_file(folder: Path) -> Reader:
  path = folder / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_embedding_length(32)
  writer.add_feed_forward_length(8)
  writer.add_head_count(2)
  writer.add_context_length(16)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(["a", "b", "ab", "<eos>"])
  writer.add_token_merges(["a b"])
  writer.add_token_types([1, 1, 1, 3])
  writer.add_eos_token_id(3)
  writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
  writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
  finish(writer)
  whole = path.read_bytes()

  def read(content: bytes) -> None:
    path.write_bytes(content)
    faults = []
    for reading in (lambda: _read_all(open_checkpoint(path)), lambda: load_tokenizer(path)):
      try:
        reading()
      except KdjaxError as error:
        faults.append(error)
    if faults:
      raise faults[0]

  return Reader([whole], read)


def tokenizer_json(folder: Path) -> Reader:
  bytes_tokenizer().save_pretrained(folder)

  def read(content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    load_tokenizer(folder)

  return Reader([(folder / "tokenizer.json").read_bytes()], read)


def cache_file(name: str) -> Callable[[Path], Reader]:
  """Of a cache of signals: one of its files, the others being whole."""

  def make(folder: Path) -> Reader:
    source = Tokens()
    write(folder, source)
    keys = [span.key for row in range(len(source)) for span in source.spans(row)]
    path = next(folder.glob(name))

    def read(content: bytes) -> None:
      path.write_bytes(content)
      cache = Cache(folder)
      assert (cache.find(keys) >= 0).all(), "an index that its checksum vouches for lacks a key"
      cache.read(keys)

    return Reader([path.read_bytes()], read)

  return make


def jsonl(folder: Path) -> Reader:
  """Lines as documents, chats, classes and pairs."""
  path = folder / "lines.jsonl"
  lines = (
    {"text": "one line", "label": 0},
    {"spans": [{"text": "a", "weight": 0}, {"text": "b", "weight": 0.5}]},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
    {"source": "1+1", "target": "2"},
  )

  def read(content: bytes) -> None:
    path.write_bytes(content)
    list(documents.jsonl(path).read())

  return Reader(["\n".join(map(json.dumps, lines[:2])).encode()], read)


def chats(folder: Path) -> Reader:
  path = folder / "chats.jsonl"
  line = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}

  def read(content: bytes) -> None:
    path.write_bytes(content)
    list(documents.chat(path).read())

  return Reader([json.dumps(line).encode() + b"\n"], read)


def labelled(folder: Path) -> Reader:
  path, tokenizer = folder / "labels.jsonl", folder / "tokenizer"
  bytes_tokenizer().save_pretrained(tokenizer)
  lines = [{"text": "ab", "label": i % 2} for i in range(4)]

  def read(content: bytes) -> None:
    path.write_bytes(content)
    data.labelled_text(
      train=str(path), test=str(path), tokenizer=str(tokenizer), sequence_length=4, num_classes=2
    )

  return Reader(["\n".join(map(json.dumps, lines)).encode()], read)


def images_idx(folder: Path) -> Reader:
  header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 3)

  def read(content: bytes) -> None:
    path = folder / "images-idx3-ubyte"
    path.write_bytes(content)
    idx.read_idx(path, ndim=3)

  return Reader([header + bytes(18)], read)


def images_idx_gz(folder: Path) -> Reader:
  whole = images_idx(folder).seeds[0]

  def read(content: bytes) -> None:
    path = folder / "images-idx3-ubyte.gz"
    path.write_bytes(content)
    idx.read_idx(path, ndim=3)

  return Reader([gzip.compress(whole, mtime=0)], read)


def image_record(folder: Path) -> Reader:
  """One record of images in ArrayRecord files, in which the file's own checksums found no fault."""
  text = json.dumps({"dtype": "uint8", "shape": [2, 2, 1], "label": 1}).encode()
  whole = struct.pack("<I", len(text)) + text + bytes(4)

  def read(content: bytes) -> None:
    array_record._decode(content)

  return Reader([whole], read)


def _read_all(checkpoint) -> None:
  for name in checkpoint.names:
    checkpoint.read(name)


READERS: dict[str, Callable[[Path], Reader]] = {
  "safetensors": safetensors,
  "safetensors_index": safetensors_index,
  "config_json": config_json,
  "gguf": gguf_file,
  "tokenizer_json": tokenizer_json,
  "cache_manifest": cache_file("manifest.json"),
  "cache_index": cache_file("*.npy"),
  "cache_shard": cache_file("signals-00000-*"),
  "jsonl": jsonl,
  "chats": chats,
  "labelled_text": labelled,
  "idx": images_idx,
  "idx_gz": images_idx_gz,
  "image_record": image_record,
}
