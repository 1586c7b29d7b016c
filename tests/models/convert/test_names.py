"""Checkpoints under the other names that their tensors go by."""

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, spec_of, write_checkpoint
from kdjax.models.convert.weights import Tensor
from kdjax.models.pretrained import pretrained
from tests.models.convert.folders import FOLDER


def rewritten(name, rename, folder, *, added=(), config=()):
  """The folder with each tensor renamed, and tensors of zeros added."""
  source = open_checkpoint(FOLDER / name)
  tensors = [
    Tensor(rename(own), source.shape(own), source.dtype(own), lambda own=own: source.read(own))
    for own in source.names
  ]
  zeros = np.zeros((1, 1, 4, 4), np.float32)
  tensors += [Tensor(own, zeros.shape, zeros.dtype, lambda: zeros) for own in added]
  write_checkpoint(folder, {**source.config, **dict(config)}, tensors)
  return source, folder


def without(prefix):
  return lambda name: name.removeprefix(prefix)


def tensorflow(name):
  name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
  return name.replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
  ("name", "rename", "added"),
  [
    ("gpt2", without("transformer."), ["h.0.attn.bias", "h.1.attn.masked_bias"]),
    ("gpt_neox", without("gpt_neox."), ["layers.0.attention.bias"]),
    ("llama", without("model."), ["layers.0.self_attn.rotary_emb.inv_freq"]),
    ("bert", tensorflow, ["cls.seq_relationship.weight", "bert.pooler.dense.weight"]),
    ("bert", without("bert."), ["pooler.dense.bias"]),
    ("bert_model", lambda name: f"bert.{tensorflow(name)}", []),
    ("roberta", without("roberta."), []),
    ("distilbert", without("distilbert."), []),
  ],
)
def test_it_is_the_same_checkpoint(name, rename, added, tmp_path):
  source, folder = rewritten(name, rename, tmp_path / "other", added=added)
  assert not source.names <= {rename(own) for own in source.names}
  other = open_checkpoint(folder)
  assert spec_of(other.config, other.names) == spec_of(source.config, source.names)
  for own in source.names:
    np.testing.assert_array_equal(other.read(own), source.read(own))
  assert other.names >= source.names and len(other.names) == len(source.names) + len(added)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_its_weights_load(name, tmp_path):
  """What the hub's files of that name look like: the buffers of old files are left out."""
  if name == "gpt2":
    _, folder = rewritten(
      name, without("transformer."), tmp_path / "x",
      added=[f"h.{i}.attn.{buffer}" for i in range(3) for buffer in ("bias", "masked_bias")],
    )  # fmt: skip
  else:
    _, folder = rewritten(name, tensorflow, tmp_path / "x", added=["bert.embeddings.position_ids"])
  given, wanted = (pretrained(path=str(p)).start() for p in (folder, FOLDER / name))
  scale = given.params["stack"]["blocks"]["norm_mlp"]["scale"]
  np.testing.assert_array_equal(scale, wanted.params["stack"]["blocks"]["norm_mlp"]["scale"])


def test_two_names_of_one_tensor_are_told(tmp_path):
  _, folder = rewritten("gpt2", lambda name: name, tmp_path / "x", added=["ln_f.weight"])
  with pytest.raises(KdjaxError, match=r"x: .*ln_f.weight and .*ln_f.weight are two names of one"):
    open_checkpoint(folder)
