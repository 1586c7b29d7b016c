import functools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, write_checkpoint

CONFIG = {"model_type": "llama", "hidden_size": 4, "architectures": ["LlamaForCausalLM"]}


class Tensor(NamedTuple):
  name: str
  shape: tuple[int, ...]
  dtype: Any
  read: Any


def tensors(seed=0):
  rng = np.random.default_rng(seed)
  arrays = {
    "matrix": rng.normal(size=(6, 4)).astype(np.float32),
    "half": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "transposed": rng.normal(size=(4, 6)).astype(np.float32).T,
    "scalar": np.array(1.5, np.float16),
    "empty": np.zeros((0, 2), np.float32),
    "ids": rng.integers(0, 9, 7),
  }
  return [Tensor(name, x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()]


def holds(folder: Path, wanted: list[Tensor]) -> None:
  checkpoint = open_checkpoint(folder)
  assert checkpoint.config == CONFIG
  assert checkpoint.names == {tensor.name for tensor in wanted}
  for tensor in wanted:
    got = checkpoint.read(tensor.name)
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    assert got.tobytes() == tensor.read().tobytes()


def beside(folder: Path) -> list[str]:
  return sorted(os.listdir(folder.parent))


def test_one_file(tmp_path):
  generation = {"do_sample": True, "temperature": 0.6}
  folder = tmp_path / "deep" / "out"
  assert write_checkpoint(folder, CONFIG, tensors(), generation_config=generation) == folder
  holds(folder, tensors())
  assert json.loads((folder / "generation_config.json").read_text()) == generation
  assert beside(folder) == ["out"]
  with safe_open(folder / "model.safetensors", framework="np") as file:
    assert file.metadata() == {"format": "pt"}
    for tensor in tensors():
      assert file.get_tensor(tensor.name).tobytes() == tensor.read().tobytes()


def test_shards(tmp_path):
  # Bytes: 96, 30, 96, 2, 0, 56. A limit of 130 splits them into 96 + 30, 96 + 2 + 0 and 56.
  write_checkpoint(tmp_path / "out", CONFIG, iter(tensors()), shard_bytes=130)
  holds(tmp_path / "out", tensors())
  names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  assert json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text()) == {
    "metadata": {"total_size": 280},
    "weight_map": {
      "matrix": names[0],
      "half": names[0],
      "transposed": names[1],
      "scalar": names[1],
      "empty": names[1],
      "ids": names[2],
    },
  }
  for name in names:
    with safe_open(tmp_path / "out" / name, framework="np") as file:
      assert len(list(file.keys())) > 0


def test_a_tensor_larger_than_a_shard(tmp_path):
  write_checkpoint(tmp_path / "out", CONFIG, tensors(), shard_bytes=1)
  holds(tmp_path / "out", tensors())


def test_holds_one_tensor_at_a_time(tmp_path):
  size, count = 4 * 2**20, 8
  made = [
    Tensor(str(i), (size // 4,), np.float32, functools.partial(np.full, size // 4, i, np.float32))
    for i in range(count)
  ]
  tracemalloc.start()
  write_checkpoint(tmp_path / "out", CONFIG, made)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert size < peak < 2.2 * size  # the last one is let go when the next one is there
  assert open_checkpoint(tmp_path / "out").read("7")[-1] == 7


def test_tokenizer(tmp_path):
  transformers = pytest.importorskip("transformers")
  from tokenizers import Tokenizer, models

  inner = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")
  write_checkpoint(tmp_path / "out", CONFIG, tensors(), tokenizer=tokenizer)
  again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
  assert again.get_vocab() == {"a": 0, "b": 1, "?": 2}
  write_checkpoint(tmp_path / "out", CONFIG, tensors(1))  # its files were written by an export too
  assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_replaces_an_export_and_an_empty_folder(tmp_path):
  folder = tmp_path / "out"
  folder.mkdir()
  write_checkpoint(folder, CONFIG, tensors(), shard_bytes=100)
  write_checkpoint(folder, CONFIG, tensors(1))
  holds(folder, tensors(1))
  assert sorted(os.listdir(folder)) == ["config.json", "kdjax_export.json", "model.safetensors"]
  assert beside(folder) == ["out"]


def test_keeps_what_no_export_wrote(tmp_path):
  folder = tmp_path / "out"
  write_checkpoint(folder, CONFIG, tensors())
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(KdjaxError, match=r"holds notes\.txt, which no earlier export wrote"):
    write_checkpoint(folder, CONFIG, tensors(1))
  holds(folder, tensors())
  other = tmp_path / "other"
  other.mkdir()
  (other / "config.json").write_text("{}")
  with pytest.raises(KdjaxError, match=r"holds config\.json, which no earlier export wrote"):
    write_checkpoint(other, CONFIG, tensors())
  with pytest.raises(KdjaxError, match="is a file; give another folder"):
    write_checkpoint(other / "config.json", CONFIG, tensors())
  assert (other / "config.json").read_text() == "{}"


def test_a_failure_keeps_the_earlier_export(tmp_path):
  folder = tmp_path / "out"
  write_checkpoint(folder, CONFIG, tensors())

  def broken():
    raise RuntimeError("lost the device")

  bad = [*tensors(1), Tensor("last", (2,), np.float32, broken)]
  with pytest.raises(RuntimeError, match="lost the device"):
    write_checkpoint(folder, CONFIG, bad)
  holds(folder, tensors())
  assert beside(folder) == ["out"]


def test_full_disk(tmp_path):
  def full():
    raise OSError(28, "No space left on device")

  bad = [Tensor("a", (2,), np.float32, full)]
  with pytest.raises(KdjaxError, match=r"cannot write .*out: No space left"):
    write_checkpoint(tmp_path / "out", CONFIG, bad)
  assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
import numpy as np
from types import SimpleNamespace
from kdjax.models.convert import write_checkpoint
def die():
  os.kill(os.getpid(), signal.SIGKILL)
first = SimpleNamespace(name="a", shape=(2,), dtype=np.float32, read=lambda: np.ones(2, np.float32))
last = SimpleNamespace(name="b", shape=(2,), dtype=np.float32, read=die)
write_checkpoint(sys.argv[1], {}, [first, last])
"""


def test_a_killed_export_leaves_the_earlier_one_and_the_next_clears_up(tmp_path):
  folder = tmp_path / "out"
  write_checkpoint(folder, CONFIG, tensors())
  done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
  assert done.returncode == -signal.SIGKILL
  holds(folder, tensors())
  assert beside(folder) == [".out.partial", "out"]
  write_checkpoint(folder, CONFIG, tensors(1))
  holds(folder, tensors(1))
  assert beside(folder) == ["out"]


def test_killed_between_the_renames(tmp_path):
  folder = tmp_path / "out"
  write_checkpoint(folder, CONFIG, tensors())
  folder.rename(tmp_path / ".out.old")
  with pytest.raises(KdjaxError, match="each name once"):
    write_checkpoint(folder, CONFIG, [])
  bad = [Tensor("a", (3,), np.float32, lambda: np.ones(2, np.float32))]
  with pytest.raises(KdjaxError, match=r"a was announced as float32\[3\] and is float32\[2\]"):
    write_checkpoint(folder, CONFIG, bad)
  holds(folder, tensors())  # back under its name
  assert beside(folder) == ["out"]


def test_bad_arguments(tmp_path):
  twice = tensors() + tensors()[:1]
  with pytest.raises(KdjaxError, match="got 7 tensors with 6 names"):
    write_checkpoint(tmp_path / "out", CONFIG, twice)
  with pytest.raises(KdjaxError, match="safetensors has no dtype complex64"):
    write_checkpoint(tmp_path / "out", CONFIG, [Tensor("a", (1,), np.complex64, None)])
  with pytest.raises(KdjaxError, match="shard_bytes = 0"):
    write_checkpoint(tmp_path / "out", CONFIG, tensors(), shard_bytes=0)
  wrong = [Tensor("a", (2,), np.float32, lambda: np.ones(2, np.float64))]
  with pytest.raises(KdjaxError, match=r"announced as float32\[2\] and is float64\[2\]"):
    write_checkpoint(tmp_path / "out", CONFIG, wrong)
  assert os.listdir(tmp_path) == []
