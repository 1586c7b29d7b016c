"""Configs of encoder-decoders, read and written."""

from __future__ import annotations

from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert.fields import (
  ACTIVATIONS,
  Config,
  Names,
)
from kdjax.models.transformer.spec import Rope, Seq2SeqSpec, Spec


def read_t5(config: Config, names: Names) -> Seq2SeqSpec:
  gated, _, act = config.get("feed_forward_proj", "relu").rpartition("-")
  # Version 1.0 scales what its tied head reads, even where that is stored; 1.1 has its own head.
  tied = "lm_head.weight" not in names
  scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
  width = config["d_model"]
  encoder = Spec(
    family="t5",
    vocab=config["vocab_size"],
    width=width,
    depth=config["num_layers"],
    heads=config["num_heads"],
    kv_heads=config["num_heads"],
    head_dim=config["d_kv"],
    mlp_width=config["d_ff"],
    max_positions=2**20,  # buckets reach as far as one likes
    causal=False,
    norm_eps=config["layer_norm_epsilon"],
    # "gated-gelu" means the approximate one, plain "gelu" does not.
    activation="gelu_tanh" if (gated, act) == ("gated", "gelu") else ACTIVATIONS[act],
    gated=bool(gated),
    position="relative",
    relative_buckets=config["relative_attention_num_buckets"],
    relative_distance=config.get("relative_attention_max_distance", 128),
    attention_scale=1.0,
    hidden_scale=width**-0.5 if scaled else 1.0,
    tied=tied,
  )
  depth = config.get("num_decoder_layers") or config["num_layers"]
  start = config.get("decoder_start_token_id")
  return Seq2SeqSpec(
    encoder,
    encoder.replace(depth=depth, causal=True, cross=True),
    start=config.get("pad_token_id", 0) if start is None else start,
  )


def write_t5(spec: Seq2SeqSpec) -> dict[str, Any]:
  own = spec.decoder
  act = {"gelu_tanh": "gelu"}.get(own.activation, own.activation)
  return {
    "vocab_size": own.vocab,
    "d_model": own.width,
    "num_layers": spec.encoder.depth,
    "num_decoder_layers": own.depth,
    "num_heads": own.heads,
    "d_kv": own.head_dim,
    "d_ff": own.mlp_width,
    "layer_norm_epsilon": own.norm_eps,
    "feed_forward_proj": f"gated-{act}" if own.gated else act,
    "relative_attention_num_buckets": own.relative_buckets,
    "relative_attention_max_distance": own.relative_distance,
    "scale_decoder_outputs": own.hidden_scale != 1.0,
    "tie_word_embeddings": own.tied,
    "is_encoder_decoder": True,
    "decoder_start_token_id": spec.start,
    "pad_token_id": 0,
  }


def read_mu(config: Config, names: Names) -> Seq2SeqSpec:
  """The encoder-decoder of microsoft/encoder-decoder-slm.

  Its positions of the encoder are centred, which rotations cannot tell from counting from 0. Its
  config names no start token: targets begin with its tokenizer's token 1.
  """
  if config.get("rope_factor", 1.0) != 1.0:
    raise KdjaxError(f"config.json: rope_factor = {config['rope_factor']} is not supported; only 1")
  if config.get("is_interleaved"):
    raise KdjaxError("config.json: is_interleaved = true of a 'mu' model is not supported")
  heads = config["n_head"]
  encoder = Spec(
    family="mu",
    vocab=config["vocab_size"],
    width=config["n_embd"],
    depth=config["n_encoder_layer"],
    heads=heads,
    kv_heads=config["n_kv_head"],
    head_dim=(config.get("qkv_embd") or config["n_embd"]) // heads,
    mlp_width=config["hidden_dim"],
    max_positions=config["block_size"],
    causal=False,
    activation="gelu_tanh",
    gated=False,
    rope=Rope(float(config["rope_theta"])),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
  )
  decoder = encoder.replace(depth=config["n_decoder_layer"], causal=True, cross=True)
  return Seq2SeqSpec(encoder, decoder, start=config.get("decoder_start_token_id", 1))


def write_mu(spec: Seq2SeqSpec) -> dict[str, Any]:
  own = spec.decoder
  return {
    "n_encoder_layer": spec.encoder.depth,
    "n_decoder_layer": own.depth,
    "n_embd": own.width,
    "qkv_embd": own.heads * own.head_dim,
    "is_interleaved": False,
    "hidden_dim": own.mlp_width,
    "n_head": own.heads,
    "n_kv_head": own.kv_heads,
    "block_size": own.max_positions,
    "rope_theta": own.rope.theta,
    "rope_factor": 1.0,
    "vocab_size": own.vocab,
    "decoder_start_token_id": spec.start,
  }
