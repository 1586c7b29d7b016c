"""Encoder-decoders write what PyTorch writes; their cached decoding is the whole pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY, Generator
from kdjax.models.convert import (
  config_of,
  open_checkpoint,
  spec_of,
  tensors_of,
  write_checkpoint,
)
from kdjax.models.transformer import Seq2SeqSpec, Spec, encoder_decoder
from kdjax.train.generate import write
from tests.data.text.helpers import bytes_tokenizer
from tests.models.convert.folders import FOLDER, SEQ2SEQ, opened, reference

tiny = functools.cache(opened)


def tight(name):
  """The model with positions for the longest source and 20 tokens of the target, and no more."""
  spec = tiny(name)[1].spec
  halves = spec.encoder.replace(max_positions=24), spec.decoder.replace(max_positions=20)
  return encoder_decoder(dataclasses.replace(spec, encoder=halves[0], decoder=halves[1]))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_greedy_text_is_that_of_pytorch(name):
  batch, _, _ = reference(name)
  lengths = np.asarray(batch["segment_ids"]).sum(1)
  assert lengths.tolist() == [24, 17]
  prompts = [row[:n].tolist() for row, n in zip(batch["tokens"], lengths, strict=True)]
  out = Generator(tight(name))(tiny(name)[2], prompts, max_new_tokens=20, sampling=GREEDY)
  wanted = np.load(FOLDER / name / "greedy.npz")
  np.testing.assert_array_equal(out.tokens, wanted["ids"])
  np.testing.assert_allclose(out.log_probs, wanted["log_probs"], atol=1e-4)


@pytest.mark.parametrize("name", ["t5_v11", "mu"])
def test_decoding_with_a_cache_is_the_whole_pass(name):
  _, model, variables = tiny(name)
  batch, _, _ = reference(name)
  target = batch["decoder_tokens"].at[:, 0].set(model.spec.start)

  @jax.jit
  def both(variables, tokens, segments, target):
    whole = {"tokens": tokens, "segment_ids": segments, "decoder_tokens": target}
    decoding = model.decode(variables)
    out, begin, cache = decoding.prefill(tokens, segments.sum(1), target.shape[1])
    logits = [out.head.logits(out.hidden)]
    for start, stop in [(0, 5), (5, 6)]:  # some tokens at once, then one
      places = begin[:, None] + jnp.arange(start, stop)[None]
      out, cache = decoding.extend(target[:, start + 1 : stop + 1], places, cache)
      logits.append(out.head.logits(out.hidden))
    return jnp.concatenate(logits, axis=1), model.apply(variables, whole)[0].logits

  given, wanted = both(variables, batch["tokens"], batch["segment_ids"], target)
  np.testing.assert_allclose(given, wanted[:, :7], atol=5e-5)


def test_the_start_token_is_the_configs():
  checkpoint = open_checkpoint(FOLDER / "t5")
  config = {**checkpoint.config, "decoder_start_token_id": None, "pad_token_id": 7}
  assert spec_of(config, checkpoint.names).start == 7
  config["decoder_start_token_id"] = 5
  spec = spec_of(config, checkpoint.names)
  assert spec.start == 5 and config_of(spec)["decoder_start_token_id"] == 5
  assert tight("mu").spec.start == 1
  with pytest.raises(KdjaxError, match="'start' is 200; wanted a token below 96"):
    spec_of({**config, "decoder_start_token_id": 200}, checkpoint.names)


def test_a_checkpoint_with_a_tokenizer_writes_text(tmp_path):
  half = Spec(
    vocab=259, width=8, depth=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8, family="mu",
    activation="gelu_tanh", gated=False, qkv_bias=True, out_bias=True, mlp_bias=True,
  )  # fmt: skip
  spec = Seq2SeqSpec(half.replace(causal=False), half.replace(cross=True), start=65)
  model = encoder_decoder(spec)
  tensors = tensors_of(model, model.init(jax.random.key(0)))
  folder = tmp_path / "mu"
  write_checkpoint(folder, config_of(spec), tensors, tokenizer=bytes_tokenizer())
  out = write(str(folder), ["abc", "d"], max_new_tokens=3, sampling=GREEDY)
  assert [len(text) for text in out.texts] == [3, 3]
  assert out.tokens == 6 and not out.continues


@pytest.mark.parametrize(("length", "new"), [(25, 20), (24, 21)])
def test_more_than_the_positions_is_told(length, new):
  with pytest.raises(
    KdjaxError, match="more than the 24 that the encoder and the 20 that the deco"
  ):
    Generator(tight("mu"))(tiny("mu")[2], [[3] * length], max_new_tokens=new)
