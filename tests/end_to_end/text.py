"""Jobs of small language models on two files of text, as mappings."""

import json
import os

import numpy as np

from configs import base
from tests.data.text.helpers import bytes_tokenizer


def text_folder(tmp_path_factory):
  """For a fixture: a folder with a tokenizer and two files of text, which repeat one rule each."""
  folder = tmp_path_factory.mktemp("text")
  os.environ["KDJAX_CACHE"] = str(folder / "cache")
  bytes_tokenizer().save_pretrained(folder / "tokenizer")
  rng = np.random.default_rng(0)
  for domain, word in (("counts", "one two three "), ("letters", "abcdefg ")):
    lines = [
      json.dumps({"text": word * int(n) + str(i)}) for i, n in enumerate(rng.integers(4, 9, 60))
    ]
    (folder / f"{domain}.jsonl").write_text("\n".join(lines))
  yield folder
  del os.environ["KDJAX_CACHE"]


def config_of(folder, **changes):
  """A config of small language models on the text of `text_folder`; `a__b` is its field a.b."""
  config = base.get_config().to_dict()
  config["data"] |= {
    "name": "text",
    "tokenizer": str(folder / "tokenizer"),
    "sequence_length": 48,
    "sources": {
      name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "field": "text"}
      for name in ("counts", "letters")
    },
    "test_fraction": 0.2,
  }
  del config["data"]["path"]
  config["mesh"]["data"] = 1
  config["total_steps"], config["batch_size"] = 24, 8
  config["student"] = {"name": "decoder", "width": 16, "depth": 1, "heads": 2}
  config["teacher"]["model"] = {"name": "decoder", "width": 32, "depth": 2, "heads": 2}
  config["teacher"]["train"] = {
    "total_steps": 60,
    "objective": {"name": "cross_entropy", "chunk_size": 16},
  }
  config["objective"] = {
    "name": "hinton_kd",
    "temperature": 1.0,
    "kd_weight": 0.5,
    "ce_weight": 0.5,
    "chunk_size": 16,
  }
  config["optimizer"]["learning_rate"] = 1e-2
  config["checkpoint"]["every"] = config["eval"]["every"] = 12
  config["eval"] |= {"batch_size": 8, "best_metric": "nll", "higher_is_better": False}
  config["samples"] = {"prompts": ["abc"], "max_new_tokens": 8}
  for path, value in changes.items():
    *parents, last = path.split("__")
    section = config
    for name in parents:
      section = section[name]
    section[last] = value
  return config
