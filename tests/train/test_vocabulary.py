"""Ids that mean different tokens to teacher and student are told before anything is computed."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint
from kdjax.objectives import combine, cross_entropy, logit_kd, minilm
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.job import run_job
from kdjax.train.vocabulary import check_tokenizer
from tests.data.test_tokenizers import write_gguf
from tests.data.text.helpers import bytes_tokenizer, words_tokenizer
from tests.end_to_end.helpers import tiny
from tests.models.convert.folders import FOLDER

MODEL = {"name": "decoder", "width": 16, "depth": 1, "heads": 2}


def checkpoint(folder, tokenizer=None, vocab=300):
  """The reference Llama with more tokens, and a tokenizer beside it."""
  shutil.copytree(FOLDER / "llama", folder)
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocab}))
  tensors = load_file(folder / "model.safetensors")
  for name in ("model.embed_tokens.weight", "lm_head.weight"):
    tensors[name] = np.resize(tensors[name], (vocab, tensors[name].shape[1]))
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  if tokenizer is not None:
    tokenizer.save_pretrained(folder)
  return {"name": "pretrained", "path": str(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabularies")
  patch = pytest.MonkeyPatch()
  patch.setenv("KDJAX_CACHE", str(folder / "cache"))
  bytes_tokenizer().save_pretrained(folder / "tokenizer")
  lines = [json.dumps({"text": f"one two three {i}"}) for i in range(12)]
  (folder / "text.jsonl").write_text("\n".join(lines))
  yield folder
  patch.undo()


def config_of(folder, *, student=MODEL, teacher=MODEL):
  config = tiny({"batch_size": 4, "eval.batch_size": 4, "eval.best_metric": "nll"})
  config["data"] |= {
    "name": "text",
    "tokenizer": str(folder / "tokenizer"),
    "sequence_length": 32,
    "sources": {"text": {"kind": "jsonl", "path": str(folder / "text.jsonl")}},
    "test_fraction": 0.3,
  }
  config["student"], config["teacher"]["model"] = student, teacher
  config["objective"] = {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 16}
  return config


def told(call, *arguments):
  with pytest.raises(KdjaxError) as caught:
    call(*arguments)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_vocabularies_of_two_sizes(folder, tmp_path):
  own = checkpoint(tmp_path / "words", words_tokenizer(), vocab=300)
  message = told(run_job, config_of(folder, teacher=own), tmp_path / "run")
  for part in (
    f"config.teacher.model has another tokenizer ({tmp_path / 'words'})",
    f"than config.data.tokenizer ({folder / 'tokenizer'})",
    "8 tokens in the one and 259 in the other",
    "id 0 is '<unk>' in the one and '!' in the other",
    "'uld' (universal logit distillation) and 'gold'",
    "config.data.teacher_tokenizer",
  ):
    assert part in message
  assert not any((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_vocabularies_of_one_size_whose_ids_mean_different_things(folder, tmp_path, side):
  own = checkpoint(tmp_path / "other", bytes_tokenizer(reverse=True))
  config = config_of(folder, **{side: own})
  message = told(run_job, config, tmp_path / "run")
  field = {"student": "config.student", "teacher": "config.teacher.model"}[side]
  assert message.startswith(f"{field} has another tokenizer")
  assert "259 tokens in both, but the ids mean different things, and id 0 is 'Ń' in" in message
  assert "and '!' in the other" in message
  assert not any((tmp_path / "run").glob("*"))
  if side == "teacher":  # nor is its word stored
    message = told(open_session, config, CacheOptions())
    assert message.startswith("config.teacher.model has another tokenizer")


def test_a_gguf_file_is_compared_too(folder, tmp_path):
  write_gguf(tmp_path / "model.gguf")
  message = told(
    check_tokenizer, "config.teacher.model", str(tmp_path / "model.gguf"), str(folder / "tokenizer")
  )
  assert "266 tokens in the one and 259 in the other, and id 256 is '12' in the one" in message


def test_what_passes(folder, tmp_path):
  tokenizer = str(folder / "tokenizer")
  checkpoint(tmp_path / "bare")
  check_tokenizer("config.teacher.model", str(tmp_path / "bare"), tokenizer)  # has no tokenizer
  other = bytes_tokenizer(chat_template=None)
  other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
  other.save_pretrained(tmp_path / "cuts")  # cuts text in other ways, into the same tokens
  check_tokenizer("config.teacher.model", str(tmp_path / "cuts"), tokenizer)
  more = bytes_tokenizer()
  more.add_tokens(["more"])
  more.save_pretrained(tmp_path / "more")
  check_tokenizer("config.teacher.model", str(tmp_path / "more"), tokenizer)
  assert open_checkpoint(tmp_path / "bare").config["vocab_size"] == 300


def test_which_objectives_pair_ids():
  kd = logit_kd(loss="forward_kl", chunk_size=4)
  assert kd.pairs_classes and logit_kd(loss="forward_kl", ce_weight=1.0).pairs_classes
  assert not cross_entropy().pairs_classes and not minilm().pairs_classes
  across = kd._replace(across_vocabularies=True)
  assert not across.pairs_classes
  assert not combine({"kd": (1.0, across), "ce": (1.0, cross_entropy())}).pairs_classes
  assert combine({"kd": (1.0, across), "same": (1.0, kd)}).pairs_classes


def test_a_checkpoint_that_lacks_tensors_costs_no_teacher(folder, tmp_path):
  own = checkpoint(tmp_path / "torn")
  tensors = load_file(tmp_path / "torn" / "model.safetensors")
  del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
  tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
  save_file(tensors, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
  config = config_of(folder, student=own)  # whose teacher would be trained first
  message = told(run_job, config, tmp_path / "run")
  for part in (
    f"config.student: {tmp_path / 'torn'} does not fit its config.json",
    "tensors are missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
    "tensors have another shape: lm_head.weight [299, 32], wanted [300, 32]",
  ):
    assert part in message
  config["student"] = {"name": "pretrained", "path": str(tmp_path / "mamba")}
  shutil.copytree(FOLDER / "llama", tmp_path / "mamba")
  (tmp_path / "mamba" / "config.json").write_text('{"model_type": "mamba"}')
  message = told(run_job, config, tmp_path / "run")
  assert "config.student" in message and "model_type = 'mamba' is not supported; what" in message
  assert not any((tmp_path / "run").glob("*"))
