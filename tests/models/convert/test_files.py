import json
import resource
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint
from kdjax.models.convert.safetensor import header_of

REFERENCE = Path(__file__).parents[3] / "third_party" / "reference" / "language_models"
CONFIG = {"model_type": "llama", "hidden_size": 4}


def arrays():
  rng = np.random.default_rng(0)
  floats = rng.normal(size=(5, 3, 2))
  kinds = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
  out = {np.dtype(kind).name: floats.astype(kind) for kind in kinds}
  out |= {kind: rng.integers(0, 100, (4, 2)).astype(kind) for kind in ("int64", "int8", "uint16")}
  return out | {
    "bool": rng.integers(0, 2, 7).astype(bool),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
  }


def write_folder(folder: Path, tensors=None, config=CONFIG) -> Path:
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors or arrays(), folder / "model.safetensors")
  return folder


def write_shards(folder: Path, weight_map: dict | None = None) -> Path:
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(CONFIG))
  save_file({"a": np.arange(4.0)}, folder / "one.safetensors")
  save_file({"b": np.arange(6.0).reshape(3, 2)}, folder / "two.safetensors")
  weight_map = weight_map or {"a": "one.safetensors", "b": "two.safetensors"}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  return folder


def same(got: np.ndarray, wanted: np.ndarray) -> None:
  assert got.dtype == wanted.dtype
  assert got.shape == wanted.shape
  assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("folder", ["llama_tied", "bert", "t5"])
def test_folder_of_transformers_as_safetensors_reads_it(folder):
  checkpoint = open_checkpoint(REFERENCE / folder)
  assert checkpoint.config == json.loads((REFERENCE / folder / "config.json").read_text())
  with safe_open(REFERENCE / folder / "model.safetensors", framework="np") as file:
    assert checkpoint.names == set(file.keys())
    for name in file.keys():  # noqa: SIM118 - the file is not iterable
      same(checkpoint.read(name), file.get_tensor(name))


def test_every_dtype_and_shape(tmp_path):
  checkpoint = open_checkpoint(write_folder(tmp_path / "model"))
  assert checkpoint.names == set(arrays())
  for name, wanted in arrays().items():
    assert checkpoint.shape(name) == wanted.shape
    assert checkpoint.dtype(name) == wanted.dtype
    same(checkpoint.read(name), wanted)


def test_rows(tmp_path):
  checkpoint = open_checkpoint(write_folder(tmp_path / "model"))
  for name in ("bfloat16", "bool", "int64"):
    same(checkpoint.read_rows(name, 1, 3), arrays()[name][1:3])
    same(checkpoint.read_rows(name, 2, 2), arrays()[name][2:2])
  with pytest.raises(KdjaxError, match=r"int64 \[4, 2\] has no rows 2 to 5"):
    checkpoint.read_rows("int64", 2, 5)
  with pytest.raises(KdjaxError, match="no tensor 'lm_head'"):
    checkpoint.read("lm_head")


def test_shards(tmp_path):
  checkpoint = open_checkpoint(write_shards(tmp_path / "model"))
  assert checkpoint.names == {"a", "b"}
  same(checkpoint.read("b"), np.arange(6.0).reshape(3, 2))
  same(checkpoint.read("a"), np.arange(4.0))


def test_shards_may_be_links(tmp_path):
  folder = write_shards(tmp_path / "model")
  (tmp_path / "blobs").mkdir()
  (folder / "one.safetensors").rename(tmp_path / "blobs" / "5f3a")
  (folder / "one.safetensors").symlink_to(tmp_path / "blobs" / "5f3a")
  same(open_checkpoint(folder).read("a"), np.arange(4.0))


def test_holds_one_tensor_at_a_time(tmp_path):
  size = 10 * 2**20
  tensors = {str(i): np.full((size // 1024, 256), i, np.float32) for i in range(6)}
  folder = write_folder(tmp_path / "model", tensors)
  del tensors
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
  tracemalloc.start()
  checkpoint = open_checkpoint(folder)
  total = sum(float(checkpoint.read(name)[0, 0]) for name in checkpoint.names)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert total == 15
  assert size < peak < 1.1 * size  # NumPy's arrays are traced, so the lower bound shows it works
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 1.5 * size / 1024
  tracemalloc.start()
  checkpoint.read_rows("3", 100, 110)
  assert tracemalloc.get_traced_memory()[1] < 50_000
  tracemalloc.stop()


def test_config(tmp_path):
  folder = write_folder(tmp_path / "model")
  (folder / "config.json").write_text('{"model_type": ')
  with pytest.raises(KdjaxError, match=r"config\.json is not JSON"):
    open_checkpoint(folder)
  (folder / "config.json").write_text("[1]")
  with pytest.raises(KdjaxError, match=r"config\.json holds list, wanted an object"):
    open_checkpoint(folder)
  (folder / "config.json").write_text('{"model_type": {}}')
  with pytest.raises(KdjaxError, match=r"config\.json: model_type = \{\} must be a name"):
    open_checkpoint(folder)
  (folder / "config.json").unlink()
  with pytest.raises(KdjaxError, match=r"has no config\.json"):
    open_checkpoint(folder)


def test_missing_shard(tmp_path):
  folder = write_shards(tmp_path / "model")
  (folder / "two.safetensors").unlink()
  with pytest.raises(KdjaxError, match=r"lacks two\.safetensors, which model\.safetensors\.index"):
    open_checkpoint(folder)


def test_tensor_not_in_its_shard(tmp_path):
  weight_map = {"a": "one.safetensors", "b": "one.safetensors"}
  with pytest.raises(KdjaxError, match=r"1 tensors are not in the shard.*b \(one\.safetensors\)"):
    open_checkpoint(write_shards(tmp_path / "model", weight_map))


@pytest.mark.parametrize(
  "shard", ["../one.safetensors", "/etc/one.safetensors", "in/one.safetensors", "one.bin", "..", 3]
)
def test_index_names_only_safetensors_beside_it(tmp_path, shard):
  save_file({"a": np.arange(4.0)}, tmp_path / "one.safetensors")
  with pytest.raises(KdjaxError, match="names the shard"):
    open_checkpoint(write_shards(tmp_path / "model", {"a": shard}))


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_truncated(tmp_path, keep):
  folder = write_folder(tmp_path / "model")
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(KdjaxError, match=r"model\.safetensors is not a whole safetensors file"):
    open_checkpoint(folder)


def header(**fields) -> bytes:
  entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields
  text = json.dumps({"a": entry}).encode()
  return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
  "content",
  [
    b"PK\x03\x04" + bytes(60),
    b"\x80\x02}q\x00." + bytes(60),
    (20).to_bytes(8, "little") + b"\xff" * 28,
    (20).to_bytes(8, "little") + b'{"a": 1}            ' + bytes(8),
    (20).to_bytes(8, "little") + b"[]                  " + bytes(8),
    header() + bytes(9),
    header(shape=[3]) + bytes(8),
    header(shape=[-2]) + bytes(8),
    header(shape=[2.0]) + bytes(8),
    header(dtype="F31") + bytes(8),
    header(data_offsets=[4, 12]) + bytes(12),
    header(data_offsets=[8, 0]) + bytes(8),
  ],
)
def test_damaged(tmp_path, content):
  folder = write_folder(tmp_path / "model")
  (folder / "model.safetensors").write_bytes(content)
  with pytest.raises(KdjaxError, match=r"model\.safetensors is not a whole safetensors file"):
    open_checkpoint(folder)


def test_overlapping_tensors(tmp_path):
  folder = write_folder(tmp_path / "model")
  text = json.dumps(
    {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}
  ).encode()
  content = len(text).to_bytes(8, "little") + text + bytes(8)
  (folder / "model.safetensors").write_bytes(content)
  with pytest.raises(KdjaxError, match="the place of the tensor 'b'"):
    open_checkpoint(folder)


def test_file_that_shrinks_after_it_was_opened(tmp_path):
  folder = write_folder(tmp_path / "model", {"a": np.arange(8.0)})
  checkpoint = open_checkpoint(folder)
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(KdjaxError, match="became shorter"):
    checkpoint.read("a")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt", "a.ckpt"])
def test_pickles_are_refused(tmp_path, name):
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
  for given in (tmp_path, tmp_path / name):
    with pytest.raises(KdjaxError, match=rf"{name} may be a pickle.*Convert it to safetensors"):
      open_checkpoint(given)


def test_safetensors_beside_a_pickle_are_read(tmp_path):
  folder = write_folder(tmp_path / "model")
  (folder / "pytorch_model.bin").write_bytes(b"\x80")
  assert open_checkpoint(folder).names == set(arrays())


def test_unknown_formats(tmp_path):
  with pytest.raises(KdjaxError, match=r"holds nothing: no checkpoint; what can be read is"):
    open_checkpoint(tmp_path)
  (tmp_path / "flax_model.msgpack").write_bytes(b"")
  with pytest.raises(KdjaxError, match=r"holds flax_model\.msgpack: no checkpoint"):
    open_checkpoint(tmp_path)
  with pytest.raises(KdjaxError, match=r"flax_model\.msgpack is not a checkpoint"):
    open_checkpoint(tmp_path / "flax_model.msgpack")
  with pytest.raises(KdjaxError, match="does not exist"):
    open_checkpoint(tmp_path / "nowhere")
  for name in ("a.gguf", "b.gguf"):
    (tmp_path / name).write_bytes(b"")
  with pytest.raises(KdjaxError, match=r"holds 2 GGUF files; name one of a\.gguf, b\.gguf"):
    open_checkpoint(tmp_path)


def test_header_worked_by_hand():
  # 10 bytes: "a" has 3 of 2 bytes, then "b" 1 of 4. The text is filled up to a multiple of 8.
  got = header_of([("a", (3,), np.dtype(ml_dtypes.bfloat16)), ("b", (), np.dtype(np.int32))])
  text = (
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},'
    b'"b":{"dtype":"I32","shape":[],"data_offsets":[6,10]}}'
  )
  assert len(text) == 139
  assert got == (144).to_bytes(8, "little") + text + b" " * 5
