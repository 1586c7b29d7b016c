"""Configs as transformers reads them: what they leave out, old fields, and what is refused."""

import pytest

from kdjax.errors import KdjaxError
from kdjax.models.convert import open_checkpoint, spec_of
from tests.models.convert.folders import FOLDER


def read(name, drop=(), **changes):
  checkpoint = open_checkpoint(FOLDER / name)
  config = {key: value for key, value in checkpoint.config.items() if key not in drop}
  return spec_of({**config, **changes}, checkpoint.names)


@pytest.mark.parametrize(
  ("name", "drop", "changes", "wanted"),
  [
    # Qwen has its windows where it says so, and by default from layer 28 on.
    ("qwen2", ["layer_types", "use_sliding_window"], {"sliding_window": 8}, {"window": None}),
    (
      "qwen2",
      ["layer_types", "sliding_window"],
      {"use_sliding_window": True, "max_window_layers": 1},
      {"window": 4096, "local": (False, True, True)},
    ),
    ("qwen3", [], {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}, {"local": ()}),
    ("mistral", ["sliding_window"], {}, {"window": 4096}),
    (
      "gemma2",
      ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"],
      {},
      {"attention_softcap": 50.0, "logit_softcap": 30.0, "window": 4096},
    ),
    ("gemma2", [], {"attn_logit_softcapping": None}, {"attention_softcap": None}),
    ("t5", ["scale_decoder_outputs", "tie_word_embeddings"], {}, {"hidden_scale": 32**-0.5}),
    ("t5_v11", ["scale_decoder_outputs"], {"tie_word_embeddings": False}, {"hidden_scale": 1.0}),
  ],
)
def test_what_is_left_out_is_the_familys_default(name, drop, changes, wanted):
  spec = read(name, drop, **changes)
  spec = getattr(spec, "decoder", spec)
  assert {field: getattr(spec, field) for field in wanted} == wanted


def test_a_tied_head_of_t5_that_is_stored_all_the_same_is_scaled():
  checkpoint = open_checkpoint(FOLDER / "t5")
  config = {k: v for k, v in checkpoint.config.items() if k != "scale_decoder_outputs"}
  stored = spec_of(config, checkpoint.names | {"lm_head.weight"}).decoder
  assert not stored.tied and stored.hidden_scale == 32**-0.5
  own = spec_of({**config, "tie_word_embeddings": False}, checkpoint.names | {"lm_head.weight"})
  assert not own.decoder.tied and own.decoder.hidden_scale == 1.0


def test_rotations_of_old_and_new_configs():
  plain = {"rope_theta": 1e4, "rope_type": "default"}
  assert read("gpt_neox", rope_parameters=plain).rope.fraction == 0.25
  assert read("gpt_neox", ["rope_parameters"], rotary_pct=0.5).rope.fraction == 0.5
  old = read("gemma3", ["rope_parameters"], rope_scaling={"rope_type": "linear", "factor": 8.0})
  assert old.rope.theta == 1e6 and old.rope.scaling == ("linear", 8.0)
  assert old.local_rope.theta == 1e4 and old.local_rope.scaling is None
  new = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
  half = read("gemma3", rope_parameters={**new, "sliding_attention": {"rope_type": "default"}})
  assert (half.rope.theta, half.local_rope.theta) == (5e5, 1e4)
  assert read("llama", ["rope_parameters"], rope_theta=5e5).rope.theta == 5e5


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
  ("name", "changes", "told"),
  [
    ("qwen2", {"rope_parameters": YARN}, "rope_type 'yarn'"),
    ("qwen2", {"rope_parameters": None, "rope_scaling": {"type": "yarn"}}, "rope_type 'yarn'"),
    ("gemma3", {"rope_parameters": {"full_attention": YARN}}, "rope_type 'yarn'"),
    ("llama", {"rope_parameters": {"full_attention": YARN}}, "rope_parameters of full_attention"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 of a 'llama' model"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("gemma3", {"model_type": "gemma3", "text_config": {}}, "a 'gemma3' model has a text_config"),
    ("gemma3", {"hidden_activation": None}, "lacks the field 'hidden_activation'"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True of a 'gpt2'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("bert", {"is_decoder": True}, "is_decoder = True"),
    ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
  ],
)
def test_what_would_be_computed_wrongly_is_refused_by_its_name(name, changes, told):
  with pytest.raises(KdjaxError, match=told):
    read(name, **changes)
