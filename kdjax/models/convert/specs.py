"""From Hugging Face configs to specs and back, a pair of small functions for each family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError
from kdjax.models.transformer.spec import Rope, Seq2SeqSpec, Spec

Config = Mapping[str, Any]
Names = Collection[str]

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}


class Family(NamedTuple):
  """How a family's config.json and a spec translate.

  Attributes:
    read: `read(config, names of the tensors) -> spec`.
    write: `write(spec) -> config`, of what `read` reads.
    architecture: the class of transformers that such a config is for.
  """

  read: Callable[[Config, Names], Spec | Seq2SeqSpec]
  write: Callable[[Any], dict[str, Any]]
  architecture: str


def spec_of(config: Config, names: Names) -> Spec | Seq2SeqSpec:
  """The spec of a checkpoint.

  Args:
    config: what its config.json holds.
    names: of its tensors, which tell whether it has a head of its own.

  Raises:
    KdjaxError: a family or a variant that is not supported.
  """
  kind = config.get("model_type")
  if kind not in FAMILIES:
    raise KdjaxError(
      f"config.json: model_type = {kind!r} is not supported; what is: {', '.join(FAMILIES)}"
    )
  try:
    return FAMILIES[kind].read(config, names)
  except KeyError as error:
    raise KdjaxError(f"config.json of a {kind!r} model lacks the field {error}") from None


def config_of(spec: Spec | Seq2SeqSpec) -> dict[str, Any]:
  """The config.json of a spec; `spec_of` reads it back."""
  family = FAMILIES[spec.family]
  return {
    "architectures": [family.architecture],
    "model_type": spec.family,
    "dtype": "float32",
    **family.write(spec),
  }


def _activation(config: Config, *fields: str) -> str:
  name = next(config[field] for field in fields if config.get(field) is not None)
  if name not in _ACTIVATIONS:
    raise KdjaxError(f"config.json: activation {name!r} is not supported: {sorted(_ACTIVATIONS)}")
  return _ACTIVATIONS[name]


def _name_of(activation: str) -> str:
  return {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)


def _rope(config: Config, kind: str | None = None) -> Rope:
  """The rotation; transformers 5 writes `rope_parameters`, older versions several fields."""
  given = config.get("rope_parameters") or config.get("rope_scaling") or {}
  given = given.get(kind, given) if kind else given
  theta = given.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
  share = given.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
  name = given.get("rope_type", given.get("type", "default"))
  if name == "default":
    return Rope(float(theta), float(share))
  if name == "linear":
    return Rope(float(theta), float(share), ("linear", given["factor"]))
  if name == "llama3":
    fields = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    return Rope(float(theta), float(share), ("llama3", *(given[field] for field in fields)))
  raise KdjaxError(
    f"config.json: rope_type {name!r} is not supported; what is: default, linear, llama3"
  )


def _rope_parameters(rope: Rope) -> dict[str, Any]:
  out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
  if rope.fraction != 1.0:
    out["partial_rotary_factor"] = rope.fraction
  if rope.scaling:
    kind, factor, *rest = rope.scaling
    out |= {"rope_type": kind, "factor": factor}
    names = "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    out |= dict(zip(names, rest, strict=False))
  return out


def _llama(config: Config, names: Names) -> Spec:
  """Llama, Mistral, Qwen2 and Qwen3: what differs stands in the config or in `model_type`."""
  family = config["model_type"]
  heads = config["num_attention_heads"]
  bias = bool(config.get("attention_bias", False))
  depth = config["num_hidden_layers"]
  window, local = _windows(config, depth)
  return Spec(
    family=family,
    vocab=config["vocab_size"],
    width=config["hidden_size"],
    depth=depth,
    heads=heads,
    kv_heads=config.get("num_key_value_heads") or heads,
    head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    norm_eps=config["rms_norm_eps"],
    activation=_activation(config, "hidden_act"),
    rope=_rope(config),
    window=window,
    local=local,
    qk_norm=family == "qwen3",
    qkv_bias=bias or family == "qwen2",
    out_bias=bias,
    mlp_bias=bool(config.get("mlp_bias", False)),
    tied=_tied(config, default=False),
  )


def _tied(config: Config, *, default: bool) -> bool:
  return bool(config.get("tie_word_embeddings", default))


def _windows(config: Config, depth: int) -> tuple[int | None, tuple[bool, ...]]:
  """(window, which layers have it)."""
  window = config.get("sliding_window")
  if window is None or not config.get("use_sliding_window", True):
    return None, ()
  kinds = config.get("layer_types")
  if kinds is None and config["model_type"] in ("qwen2", "qwen3"):
    first = config.get("max_window_layers", 28)
    kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
  if kinds is None:
    return window, (True,) * depth
  if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
    raise KdjaxError(f"config.json: layer_types holds {sorted(unknown)}, which is not supported")
  local = tuple(kind == "sliding_attention" for kind in kinds)
  return (window, local) if any(local) else (None, ())


def _layer_types(spec: Spec) -> list[str]:
  return ["sliding_attention" if local else "full_attention" for local in spec.is_local]


def _decoder_sizes(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "num_key_value_heads": spec.kv_heads,
    "head_dim": spec.head_dim,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "rms_norm_eps": spec.norm_eps,
    "tie_word_embeddings": spec.tied,
  }


def _write_llama(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "hidden_act": _name_of(spec.activation),
    "rope_parameters": _rope_parameters(spec.rope),
  }
  if spec.family == "llama":
    own |= {"attention_bias": spec.out_bias, "mlp_bias": spec.mlp_bias}
  if spec.family == "mistral":
    own |= {"sliding_window": spec.window}
  if spec.family in ("qwen2", "qwen3"):
    local = any(spec.is_local)
    own |= {"use_sliding_window": local, "sliding_window": spec.window}
    own |= {"layer_types": _layer_types(spec)}
    if spec.family == "qwen3":
      own |= {"attention_bias": spec.out_bias}
  return _decoder_sizes(spec) | own


def _gemma(config: Config, names: Names) -> Spec:
  depth, width = config["num_hidden_layers"], config["hidden_size"]
  third = config["model_type"] == "gemma3_text"
  kinds = config.get("layer_types")
  if kinds is None:  # every sixth layer, or every second one, sees everything
    step = config.get("sliding_window_pattern", 6) if third else 2
    kinds = ["full_attention" if (i + 1) % step == 0 else "sliding_attention" for i in range(depth)]
  window, local = _windows({**config, "layer_types": kinds}, depth)
  rope, local_rope = _rope(config), None
  if third:
    rope = _rope(config, "full_attention")
    local_rope = _rope(config, "sliding_attention")
    if "rope_parameters" not in config:
      local_rope = Rope(config.get("rope_local_base_freq", 10000.0))
  return Spec(
    family=config["model_type"],
    vocab=config["vocab_size"],
    width=width,
    depth=depth,
    heads=config["num_attention_heads"],
    kv_heads=config["num_key_value_heads"],
    head_dim=config["head_dim"],
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    block="sandwich",
    norm_eps=config["rms_norm_eps"],
    activation=_activation(config, "hidden_activation", "hidden_act"),
    rope=rope,
    local_rope=local_rope,
    window=window,
    local=local,
    qk_norm=third,
    attention_scale=config["query_pre_attn_scalar"] ** -0.5,
    attention_softcap=config.get("attn_logit_softcapping"),
    logit_softcap=config.get("final_logit_softcapping"),
    embed_scale=width**0.5,
    qkv_bias=bool(config.get("attention_bias", False)),
    out_bias=bool(config.get("attention_bias", False)),
    tied=_tied(config, default=True),
  )


def _write_gemma(spec: Spec) -> dict[str, Any]:
  scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
  rope = _rope_parameters(spec.rope)
  if spec.local_rope is not None:
    rope = {"full_attention": rope, "sliding_attention": _rope_parameters(spec.local_rope)}
  return _decoder_sizes(spec) | {
    "hidden_activation": _name_of(spec.activation),
    "rope_parameters": rope,
    "sliding_window": spec.window,
    "layer_types": _layer_types(spec),
    "query_pre_attn_scalar": round(scale**-2, 6),
    "attn_logit_softcapping": spec.attention_softcap,
    "final_logit_softcapping": spec.logit_softcap,
    "attention_bias": spec.qkv_bias,
  }


def _gpt2(config: Config, names: Names) -> Spec:
  width, heads = config["n_embd"], config["n_head"]
  if config.get("scale_attn_by_inverse_layer_idx") or config.get("add_cross_attention"):
    raise KdjaxError(
      "config.json: scale_attn_by_inverse_layer_idx and add_cross_attention of GPT-2 are not"
      " supported; they must be false"
    )
  return Spec(
    family="gpt2",
    vocab=config["vocab_size"],
    width=width,
    depth=config["n_layer"],
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=config.get("n_inner") or 4 * width,
    max_positions=config["n_positions"],
    norm="layer",
    norm_eps=config["layer_norm_epsilon"],
    activation=_activation(config, "activation_function"),
    gated=False,
    position="learned",
    attention_scale=None if config.get("scale_attn_weights", True) else 1.0,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=_tied(config, default=True),
  )


def _write_gpt2(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "n_embd": spec.width,
    "n_layer": spec.depth,
    "n_head": spec.heads,
    "n_inner": spec.mlp_width,
    "n_positions": spec.max_positions,
    "layer_norm_epsilon": spec.norm_eps,
    "activation_function": {"gelu_tanh": "gelu_new"}.get(spec.activation, spec.activation),
    "scale_attn_weights": spec.attention_scale is None,
    "tie_word_embeddings": spec.tied,
  }


def _gpt_neox(config: Config, names: Names) -> Spec:
  width, heads = config["hidden_size"], config["num_attention_heads"]
  rope = _rope(config)
  if "rope_parameters" not in config and "rotary_pct" not in config:
    rope = Rope(rope.theta, 0.25, rope.scaling)
  bias = bool(config.get("attention_bias", True))
  return Spec(
    family="gpt_neox",
    vocab=config["vocab_size"],
    width=width,
    depth=config["num_hidden_layers"],
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=config["intermediate_size"],
    max_positions=config["max_position_embeddings"],
    block="parallel" if config.get("use_parallel_residual", True) else "pre",
    norm="layer",
    norm_eps=config["layer_norm_eps"],
    activation=_activation(config, "hidden_act"),
    gated=False,
    rope=rope,
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    tied=_tied(config, default=False),
  )


def _write_gpt_neox(spec: Spec) -> dict[str, Any]:
  return {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "layer_norm_eps": spec.norm_eps,
    "hidden_act": _name_of(spec.activation),
    "use_parallel_residual": spec.block == "parallel",
    "rope_parameters": _rope_parameters(spec.rope) | {"partial_rotary_factor": spec.rope.fraction},
    "attention_bias": spec.qkv_bias,
    "tie_word_embeddings": spec.tied,
  }


def _bert(config: Config, names: Names) -> Spec:
  """BERT (and MiniLM, which has its form) and RoBERTa."""
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
    activation=_activation(config, "hidden_act"),
    token_types=config["type_vocab_size"],
    position_offset=offset,
    head=head in names,
  )


def _distilbert(config: Config, names: Names) -> Spec:
  return _encoder(
    config,
    depth=config["n_layers"],
    width=config["dim"],
    heads=config["n_heads"],
    mlp_width=config["hidden_dim"],
    max_positions=config["max_position_embeddings"],
    norm_eps=1e-12,
    activation=_activation(config, "activation"),
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
    tied=_tied(config, default=True),
    final_norm=False,
    embed_norm=True,
    **own,
  )


def _write_bert(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.depth,
    "num_attention_heads": spec.heads,
    "intermediate_size": spec.mlp_width,
    "max_position_embeddings": spec.max_positions + spec.position_offset,
    "layer_norm_eps": spec.norm_eps,
    "hidden_act": _name_of(spec.activation),
    "type_vocab_size": spec.token_types,
    "tie_word_embeddings": spec.tied,
    "pad_token_id": max(spec.position_offset - 1, 0),
  }
  return own if spec.head else own | {"architectures": [_headless(spec.family)]}


def _headless(family: str) -> str:
  return {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}[family]


def _write_distilbert(spec: Spec) -> dict[str, Any]:
  own: dict[str, Any] = {
    "vocab_size": spec.vocab,
    "dim": spec.width,
    "n_layers": spec.depth,
    "n_heads": spec.heads,
    "hidden_dim": spec.mlp_width,
    "max_position_embeddings": spec.max_positions,
    "activation": _name_of(spec.activation),
    "tie_word_embeddings": spec.tied,
  }
  return own if spec.head else own | {"architectures": [_headless(spec.family)]}


def _t5(config: Config, names: Names) -> Seq2SeqSpec:
  gated, _, act = config.get("feed_forward_proj", "relu").rpartition("-")
  # Version 1.0 scales what a tied head reads; 1.1 has a head of its own.
  tied = "lm_head.weight" not in names
  scaled = config.get("scale_decoder_outputs", tied)
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
    activation="gelu_tanh" if (gated, act) == ("gated", "gelu") else _ACTIVATIONS[act],
    gated=bool(gated),
    position="relative",
    relative_buckets=config["relative_attention_num_buckets"],
    relative_distance=config.get("relative_attention_max_distance", 128),
    attention_scale=1.0,
    hidden_scale=width**-0.5 if scaled else 1.0,
    tied=tied,
  )
  depth = config.get("num_decoder_layers") or config["num_layers"]
  return Seq2SeqSpec(encoder, encoder.replace(depth=depth, causal=True, cross=True))


def _write_t5(spec: Seq2SeqSpec) -> dict[str, Any]:
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
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
  }


def _mu(config: Config, names: Names) -> Seq2SeqSpec:
  """The encoder-decoder of microsoft/encoder-decoder-slm.

  Its positions of the encoder are centred, which rotations cannot tell from counting from 0.
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
  return Seq2SeqSpec(encoder, decoder)


def _write_mu(spec: Seq2SeqSpec) -> dict[str, Any]:
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
  }


FAMILIES: dict[str, Family] = {
  "llama": Family(_llama, _write_llama, "LlamaForCausalLM"),
  "mistral": Family(_llama, _write_llama, "MistralForCausalLM"),
  "qwen2": Family(_llama, _write_llama, "Qwen2ForCausalLM"),
  "qwen3": Family(_llama, _write_llama, "Qwen3ForCausalLM"),
  "gemma2": Family(_gemma, _write_gemma, "Gemma2ForCausalLM"),
  "gemma3_text": Family(_gemma, _write_gemma, "Gemma3ForCausalLM"),
  "gpt2": Family(_gpt2, _write_gpt2, "GPT2LMHeadModel"),
  "gpt_neox": Family(_gpt_neox, _write_gpt_neox, "GPTNeoXForCausalLM"),
  "bert": Family(_bert, _write_bert, "BertForMaskedLM"),
  "roberta": Family(_bert, _write_bert, "RobertaForMaskedLM"),
  "distilbert": Family(_distilbert, _write_distilbert, "DistilBertForMaskedLM"),
  "t5": Family(_t5, _write_t5, "T5ForConditionalGeneration"),
  "mu": Family(_mu, _write_mu, "Mu"),
}
