"""Configs of encoders, read and written."""

from __future__ import annotations

from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.convert.fields import (
  Config,
  Names,
  activation_of,
  name_of,
  refuse,
  tied_of,
)
from kdjax.models.transformer.spec import Spec


def read_bert(config: Config, names: Names) -> Spec:
  """BERT (and MiniLM, which has its form) and RoBERTa."""
  refuse(config, "is_decoder", "add_cross_attention")
  if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
    raise KdjaxError(f"config.json: position_embedding_type = {kind!r} must be 'absolute'")
  roberta = config["model_type"] == "roberta"
  head = "lm_head.bias" if roberta else "cls.predictions.bias"
  offset = config["pad_token_id"] + 1 if roberta else 0
  return _encoder(
    config,
    depth=config["num_hidden_layers"],
    width=config["hidden_size"],
    heads=config["num_attention_heads"],
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"] - offset,
    norm_eps=config["layer_norm_eps"],
    activation=activation_of(config, "hidden_act"),
    token_types=config["type_vocab_size"],
    position_offset=offset,
    head=head in names,
  )


def read_distilbert(config: Config, names: Names) -> Spec:
  return _encoder(
    config,
    depth=config["n_layers"],
    width=config["dim"],
    heads=config["n_heads"],
    mlp_width=config["hidden_dim"],
    max_positions=config["max_position_embeddings"],
    norm_eps=1e-12,
    activation=activation_of(config, "activation"),
    head="vocab_projector.bias" in names,
  )


def _encoder(config: Config, *, heads: int, width: int, head: bool, **own: Any) -> Spec:
  return Spec(
    family=config["model_type"],
    vocab=config["vocab_size"],
    width=width,
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    causal=False,
    block="post",
    norm="layer",
    gated=False,
    position="learned",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    head=head,
    head_bias=head,
    head_transform=head,
    tied=tied_of(config, default=True),
    final_norm=False,
    embed_norm=True,
    **own,
  )


def write_bert(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions + spec.position_offset,
    "layer_norm_eps": spec.norm_eps,
    "hidden_act": name_of(spec.activation),
    "type_vocab_size": spec.token_types,
    "tie_word_embeddings": spec.tied,
    "pad_token_id": max(spec.position_offset - 1, 0),
  }
  return own if spec.head else own | {"architectures": [_headless(spec.family)]}


def _headless(family: str) -> str:
  return {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}[family]


def write_distilbert(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "vocab_size": spec.vocab,
    "dim": spec.width,
    "n_layers": spec.depth,
    "n_heads": spec.heads,
    "hidden_dim": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "activation": name_of(spec.activation),
    "tie_word_embeddings": spec.tied,
  }
  return own if spec.head else own | {"architectures": [_headless(spec.family)]}
