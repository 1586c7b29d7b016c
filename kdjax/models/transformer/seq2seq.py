"""Encoder-decoders: T5, and the form with rotary positions that small models use."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Batch, Decoding, Model, functional
from kdjax.models.layers import REMAT, check_segment, dropout_rngs
from kdjax.models.transformer.attention import check_attention
from kdjax.models.transformer.block import LAYER_TAPS
from kdjax.models.transformer.language_model import (
  Embed,
  Vocabulary,
  check_length,
  mean_of_tokens,
)
from kdjax.models.transformer.spec import Seq2SeqSpec
from kdjax.models.transformer.stack import Cache, Stack
from kdjax.outputs import Outputs


class EncoderDecoder(nnx.Module):
  """Source tokens to states; target tokens, which attend to them, to logits."""

  def __init__(self, spec: Seq2SeqSpec, *, dtype: Any, remat: str, attention: str, rngs: nnx.Rngs):
    stack = functools.partial(Stack, dtype=dtype, remat=remat, attention=attention, rngs=rngs)
    self.embed = Embed(spec.decoder, dtype=dtype, rngs=rngs)
    self.encoder = stack(spec.encoder)
    self.decoder = stack(spec.decoder)
    self.vocabulary = Vocabulary(spec.decoder, dtype=dtype, rngs=rngs)
    self.spec = spec
    self.dtype = dtype

  def _encode(self, tokens, segments, rngs):
    positions = _positions(tokens)
    context = self.encoder.context(positions, segments, plain=True)
    hidden = self.embed(tokens, positions, None, rngs)
    return self.encoder.finish(self.encoder.run(hidden, context, rngs=rngs)[0])

  def _context(self, tokens, segments, decoder_tokens, decoder_segments, rngs):
    memory = self._encode(tokens, segments, rngs)
    seen = None
    if segments is not None:
      seen = (segments > 0)[:, None, None, :]
      seen = jnp.broadcast_to(seen, (*seen.shape[:2], decoder_tokens.shape[1], seen.shape[3]))
    positions = _positions(decoder_tokens)
    context = self.decoder.context(
      positions, decoder_segments, plain=True, memory=memory, memory_mask=seen
    )
    return context, positions

  def __call__(
    self, tokens, segments, decoder_tokens, decoder_segments, *, taps, train, rngs
  ) -> Outputs:
    rngs = dropout_rngs(self.spec.decoder.dropout, train, rngs)
    context, positions = self._context(tokens, segments, decoder_tokens, decoder_segments, rngs)
    hidden = self.embed(decoder_tokens, positions, None, rngs)
    hidden, collected = self.decoder.run(hidden, context, taps=taps, rngs=rngs)
    out = Outputs(**collected)
    if "embedding" in taps:
      out = dataclasses.replace(out, embedding=mean_of_tokens(context.memory, segments))
    if taps & {"hidden", "head", "logits"}:
      hidden = self.vocabulary.reads(self.decoder.finish(hidden))
      head = self.vocabulary.head(self.embed.tokens[...])
      out = dataclasses.replace(
        out,
        logits=head.logits(hidden) if "logits" in taps else None,
        hidden=hidden if "hidden" in taps else None,
        head=head if "head" in taps else None,
      )
    return out

  def segment(self, hidden, start: int, stop: int, *inputs):
    check_segment(start, stop, self.spec.decoder.depth)
    context, _ = self._context(*inputs, None)
    return self.decoder.run(hidden.astype(self.dtype), context, start=start, stop=stop)[0]

  def decoding(self) -> Decoding:
    """See `Model.decode`. The prompt is the source; the target begins with `spec.start`."""
    decoder, layers = self.decoder, self.decoder.apart()

    def prefill(
      prompts: Int[Array, "batch source"], lengths: Int[Array, "batch"], new: int
    ) -> tuple[Outputs, Array, Cache]:
      check_length(prompts.shape[1], self.spec.encoder)
      check_length(new, self.spec.decoder)
      segments = (_positions(prompts) < lengths[:, None]).astype(jnp.int32)
      start = jnp.full_like(prompts[:, :1], self.spec.start)
      context, positions = self._context(prompts, segments, start, None, None)
      # The start token and all new ones but the last, which nobody reads.
      hidden, cache = decoder.fill(self.embed(start, positions, None, None), context, new)
      return self._read(hidden), jnp.ones_like(lengths), cache

    def extend(
      tokens: Int[Array, "batch time"], positions: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Outputs, Cache]:
      batch, _, _, source = cache.memory_mask.shape
      seen = jnp.broadcast_to(cache.memory_mask, (batch, 1, tokens.shape[1], source))
      context = decoder.context(positions, None, key_positions=cache.places, memory_mask=seen)
      hidden = self.embed(tokens, positions, None, None)
      hidden, cache = decoder.extend(layers, hidden, context, positions, cache)
      return self._read(hidden), cache

    return Decoding(prefill, extend)

  def _read(self, hidden: Array) -> Outputs:
    """The outputs `hidden` and `head` of the last layer's states."""
    hidden = self.vocabulary.reads(self.decoder.finish(hidden))
    return Outputs(hidden=hidden, head=self.vocabulary.head(self.embed.tokens[...]))


def _positions(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)


def encoder_decoder(
  spec: Seq2SeqSpec, *, remat: str = "none", dtype: str = "float32", attention: str = "auto"
) -> Model:
  """The encoder-decoder that a spec describes.

  Batches have `tokens` int32 [B, S] (the source) and `decoder_tokens` int32 [B, T] (what stands
  before each target), and may have `segment_ids` and `decoder_segment_ids` (0 for padding).

  Args:
    spec: of both halves.
    remat: see `language_model`.
    dtype: see `language_model`.
    attention: see `language_model`.

  Returns:
    The model. Its taps are those of the decoder; `embedding` is the mean of the encoder's states.
    It generates: the prompt is the source.

  Raises:
    KdjaxError: halves that do not fit; when traced, a sequence longer than max_positions.
  """
  checks.one_of("remat", remat, REMAT)
  encoder, decoder = spec.encoder, spec.decoder
  fits = encoder.width == decoder.width and encoder.vocab == decoder.vocab
  checks.require(fits, "encoder.width", encoder.width, f"the decoder's, {decoder.width}")
  checks.require(decoder.cross and decoder.causal, "decoder.cross", decoder.cross, "True")
  checks.require(not encoder.causal, "encoder.causal", encoder.causal, "False")
  compute_dtype = checks.compute_dtype(dtype)
  for half in (encoder, decoder):
    check_attention(attention, half, dtype)

  def inputs(batch: Batch) -> tuple[Any, ...]:
    for key in ("tokens", "decoder_tokens"):
      if key not in batch:
        raise KdjaxError(
          f"the batch has no key {key!r} for an encoder-decoder; it has {sorted(batch)}"
        )
    check_length(batch["tokens"].shape[1], encoder)
    check_length(batch["decoder_tokens"].shape[1], decoder)
    keys = "tokens", "segment_ids", "decoder_tokens", "decoder_segment_ids"
    return tuple(batch.get(key) for key in keys)

  return functional(
    lambda rngs: EncoderDecoder(
      spec, dtype=compute_dtype, remat=remat, attention=attention, rngs=rngs
    ),
    inputs=inputs,
    taps=LAYER_TAPS | {"embedding", "hidden", "head", "logits", "segment"},
    num_classes=spec.vocab,
    spec=spec,
  )
