"""The reference checkpoints, opened as models."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.convert import load_weights, open_checkpoint, spec_of
from kdjax.models.transformer import Seq2SeqSpec, encoder_decoder, language_model

FOLDER = Path(__file__).parents[3] / "third_party" / "reference" / "language_models"
DECODERS = [
  "llama", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2",
  "gpt_neox", "gpt_neox_sequential",
]  # fmt: skip
ENCODERS = ["bert", "roberta", "distilbert", "bert_model"]
SEQ2SEQ = ["t5", "t5_v11", "mu"]


@functools.cache
def opened(name, **options):
  """(checkpoint, model, variables) of a reference folder, read once."""
  checkpoint = open_checkpoint(FOLDER / name)
  spec = spec_of(checkpoint.config, checkpoint.names)
  make = encoder_decoder if isinstance(spec, Seq2SeqSpec) else language_model
  model = make(spec, **options)
  return checkpoint, model, load_weights(checkpoint, model)


def random_variables(spec, seed=0):
  """Variables of a decoder or encoder, drawn by NumPy, which compiles nothing."""
  rng = np.random.default_rng(seed)
  abstract = jax.eval_shape(language_model(spec).init, jax.random.key(0))

  def one(path, leaf):
    middle, spread = (1.0, 0.2) if path[-1].key == "scale" else (0.0, 0.3)
    return jnp.asarray(rng.normal(middle, spread, leaf.shape), leaf.dtype)

  return abstract._replace(params=jax.tree_util.tree_map_with_path(one, abstract.params))


def reference(name):
  """(batch, where positions count, arrays of the reference)."""
  arrays = dict(np.load(FOLDER / name / "reference.npz", allow_pickle=False))
  batch = {"tokens": jnp.asarray(arrays["input_ids"], jnp.int32)}
  where = np.ones(arrays["input_ids"].shape, bool)
  if "attention_mask" in arrays:
    batch["segment_ids"] = jnp.asarray(arrays["attention_mask"], jnp.int32)
    where = arrays["attention_mask"].astype(bool)
  if "token_type_ids" in arrays:
    batch["token_types"] = jnp.asarray(arrays["token_type_ids"], jnp.int32)
  if "decoder_input_ids" in arrays:
    batch["decoder_tokens"] = jnp.asarray(arrays["decoder_input_ids"], jnp.int32)
    where = np.ones(batch["decoder_tokens"].shape, bool)
    if name.startswith("mu"):  # it masks what follows the padding token
      where = np.asarray(batch["decoder_tokens"]) != 0
      batch["decoder_segment_ids"] = jnp.asarray(where, jnp.int32)
  return batch, where, arrays
