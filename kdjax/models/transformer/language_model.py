"""Decoders (causal) and encoders (bidirectional): embeddings, a stack, a head."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Batch, Decoding, Model, functional
from kdjax.models.layers import REMAT, check_segment, dropout_rngs, linear, named
from kdjax.models.partial_sums import in_slices, scattered
from kdjax.models.transformer.attention import INIT, check_attention
from kdjax.models.transformer.block import _ACTIVATIONS, LAYER_TAPS
from kdjax.models.transformer.norm import Norm
from kdjax.models.transformer.spec import Spec
from kdjax.models.transformer.stack import Cache, Stack
from kdjax.outputs import Head, Outputs


class Embed(nnx.Module):
  """Token embeddings, with learned positions, token types and a norm where the spec has them."""

  def __init__(self, spec: Spec, *, dtype: Any, rngs: nnx.Rngs):
    def table(rows: int, name: str | None) -> nnx.Param:
      value = 0.02 * jax.random.normal(rngs.params(), (rows, spec.width))
      return nnx.Param(value, **named(name, "embed"))

    self.tokens = table(spec.vocab, "vocab")
    if spec.position == "learned":
      self.positions = table(spec.max_positions + spec.position_offset, None)
    if spec.token_types:
      self.types = table(spec.token_types, None)
    if spec.embed_norm:
      self.norm = Norm(spec.norm, spec.width, spec.norm_eps, rngs=rngs)
    self.dropout = nnx.Dropout(spec.dropout)
    self.spec = spec
    self.dtype = dtype

  def __call__(
    self, tokens, positions, types, rngs, rows: Float[Array, "batch time width"] | None = None
  ) -> Float[Array, "batch time width"]:
    """States before the first layer; `rows` are those of the tokens where they are at hand."""
    spec = self.spec
    hidden = rows_of(self.tokens[...], tokens) if rows is None else rows
    if spec.embed_scale != 1.0:
      hidden = hidden * jnp.asarray(spec.embed_scale, hidden.dtype)
    if spec.position == "learned":
      hidden = hidden + self.positions[...][positions + spec.position_offset]
    if spec.token_types:
      hidden = hidden + self.types[...][jnp.zeros_like(tokens) if types is None else types]
    if spec.embed_norm:
      hidden = self.norm(hidden)
    hidden = self.dropout(hidden, deterministic=rngs is None, rngs=rngs)
    return hidden.astype(self.dtype)


def rows_of(
  table: Float[Array, "vocab width"], tokens: Int[Array, "batch time"]
) -> Float[Array, "batch time width"]:
  """The table's rows of the tokens."""
  return rows_and_table(table, tokens)[0] if in_slices() else table[tokens]


@jax.custom_vjp
def rows_and_table(
  table: Float[Array, "vocab width"], tokens: Int[Array, "batch time"]
) -> tuple[Float[Array, "batch time width"], Float[Array, "vocab width"]]:
  """The table's rows of the tokens, and the table again for the head that shares it.

  The gradient of the rows is added into that of the head where it lies. Autodiff by itself would
  make a second array of the table's size and add the two. It has no forward-mode derivative.
  """
  return table[tokens], table


def _rows_and_table_forward(table, tokens):
  return rows_and_table(table, tokens), tokens


def _rows_and_table_backward(tokens, cotangents):
  rows, table = cotangents
  if in_slices():
    return table + scattered(table, tokens, rows), None
  return table.at[tokens].add(rows.astype(table.dtype)), None


rows_and_table.defvjp(_rows_and_table_forward, _rows_and_table_backward)


class HeadTransform(nnx.Module):
  """What BERT puts before its head: dense, activation, norm."""

  def __init__(self, spec: Spec, *, dtype: Any, rngs: nnx.Rngs):
    self.dense = linear(
      spec.width, spec.width, ("embed", None), kernel_init=INIT, rngs=rngs, dtype=dtype
    )
    self.norm = Norm(spec.norm, spec.width, spec.norm_eps, rngs=rngs)
    self.activation = spec.activation

  def __call__(self, hidden: Array) -> Array:
    return self.norm(_ACTIVATIONS[self.activation](self.dense(hidden)))


class Vocabulary(nnx.Module):
  """The head: from states to logits, its kernel its own or the embedding's."""

  def __init__(self, spec: Spec, *, dtype: Any, rngs: nnx.Rngs):
    if spec.head_transform:
      self.transform = HeadTransform(spec, dtype=dtype, rngs=rngs)
    if not spec.tied:
      value = 0.02 * jax.random.normal(rngs.params(), (spec.width, spec.vocab))
      self.kernel = nnx.Param(value, **named("embed", "vocab"))
    if spec.head_bias:
      self.bias = nnx.Param(jnp.zeros(spec.vocab), **named("vocab"))
    self.spec = spec

  def reads(self, hidden: Array) -> Array:
    """What the last linear layer reads."""
    if self.spec.head_transform:
      hidden = self.transform(hidden)
    if self.spec.hidden_scale != 1.0:
      hidden = hidden * jnp.asarray(self.spec.hidden_scale, hidden.dtype)
    return hidden

  def head(self, table: Float[Array, "vocab width"]) -> Head:
    """The head, of the embedding's table where it is tied."""
    weight = table if self.spec.tied else self.kernel[...]
    bias = self.bias[...] if self.spec.head_bias else None
    return Head(weight, bias, softcap=self.spec.logit_softcap, tied=self.spec.tied)


class LanguageModel(nnx.Module):
  """Tokens to states to logits."""

  def __init__(self, spec: Spec, *, dtype: Any, remat: str, attention: str, rngs: nnx.Rngs):
    self.embed = Embed(spec, dtype=dtype, rngs=rngs)
    self.stack = Stack(spec, dtype=dtype, remat=remat, attention=attention, rngs=rngs)
    if spec.head:
      self.vocabulary = Vocabulary(spec, dtype=dtype, rngs=rngs)
    self.spec = spec
    self.dtype = dtype

  def __call__(self, tokens, segments, positions, types, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.spec.dropout, train, rngs)
    context, places = self.context(tokens, segments, positions)
    table, rows = self.embed.tokens[...], None
    if self.spec.tied and "head" in taps:
      rows, table = rows_and_table(table, tokens)
    hidden, collected = self.stack.run(
      self.embed(tokens, places, types, rngs, rows), context, taps=taps, rngs=rngs
    )
    hidden = self.stack.finish(hidden)
    out = Outputs(**collected)
    if "embedding" in taps:
      out = dataclasses.replace(out, embedding=mean_of_tokens(hidden, segments))
    if taps & {"hidden", "head", "logits"} and self.spec.head:
      hidden, head = self.vocabulary.reads(hidden), self.vocabulary.head(table)
      out = dataclasses.replace(
        out,
        logits=head.logits(hidden) if "logits" in taps else None,
        head=head if "head" in taps else None,
      )
    return dataclasses.replace(out, hidden=hidden) if "hidden" in taps else out

  def context(self, tokens, segments, positions):
    plain = positions is None
    if plain:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    return self.stack.context(positions, segments, plain=plain), positions

  def segment(self, hidden, start: int, stop: int, tokens, segments, positions, types):
    check_segment(start, stop, self.spec.depth)
    context, _ = self.context(tokens, segments, positions)
    return self.stack.run(hidden.astype(self.dtype), context, start=start, stop=stop)[0]

  def decoding(self) -> Decoding:
    """See `Model.decode`."""
    stack, layers = self.stack, self.stack.apart()

    def prefill(
      prompts: Int[Array, "batch prompt"], lengths: Int[Array, "batch"], new: int
    ) -> tuple[Outputs, Array, Cache]:
      slots = prompts.shape[1] + new
      check_length(slots, self.spec)
      context, positions = self.context(prompts, None, None)
      hidden, cache = stack.fill(self.embed(prompts, positions, None, None), context, slots)
      # What stands in the cache behind a prompt's end is padding, overwritten before it is seen.
      last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
      return self._read(last), lengths, cache

    def extend(
      tokens: Int[Array, "batch time"], positions: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Outputs, Cache]:
      context = stack.context(positions, None, key_positions=cache.places)
      hidden = self.embed(tokens, positions, None, None)
      hidden, cache = stack.extend(layers, hidden, context, positions, cache)
      return self._read(hidden), cache

    return Decoding(prefill, extend)

  def _read(self, hidden: Array) -> Outputs:
    """The outputs `hidden` and `head` of the last layer's states."""
    hidden = self.vocabulary.reads(self.stack.finish(hidden))
    return Outputs(hidden=hidden, head=self.vocabulary.head(self.embed.tokens[...]))


def mean_of_tokens(
  hidden: Float[Array, "batch time width"], segments: Int[Array, "batch time"] | None
) -> Float[Array, "batch width"]:
  """The mean state of the tokens that are not padding (segment 0), float32."""
  hidden = hidden.astype(jnp.float32)
  if segments is None:
    return hidden.mean(1)
  counted = (segments > 0)[..., None].astype(jnp.float32)
  return (hidden * counted).sum(1) / jnp.maximum(counted.sum(1), 1.0)


def text_input(spec: Spec):
  """Picks tokens, segments, positions and token types out of a batch and checks their length."""

  def pick(batch: Batch) -> tuple[Any, ...]:
    if "tokens" not in batch:
      raise KdjaxError(
        f"the batch has no key 'tokens' for a language model; it has {sorted(batch)}"
      )
    tokens = batch["tokens"]
    check_length(tokens.shape[1], spec)
    return tuple(batch.get(key) for key in ("tokens", "segment_ids", "positions", "token_types"))

  return pick


def check_length(length: int, spec: Spec) -> None:
  """Raises KdjaxError for a sequence longer than the model's positions."""
  if length > spec.max_positions:
    raise KdjaxError(
      f"a sequence of {length} tokens is longer than the model's max_positions ="
      f" {spec.max_positions}; lower config.data.sequence_length (or the number of new tokens)"
    )


def language_model(
  spec: Spec, *, remat: str = "none", dtype: str = "float32", attention: str = "auto"
) -> Model:
  """The model that a spec describes.

  Batches have `tokens` int32 [B, T], and may have `segment_ids` [B, T] (0 for padding, then 1, 2,
  ... for the sequences packed into a row, none of which sees another), `positions` [B, T] (from the
  start of each) and `token_types` [B, T].

  Args:
    spec: what it is made of.
    remat: what the backward pass recomputes instead of keeping: "none", "mlp" or "full".
    dtype: compute dtype, "float32" or "bfloat16". Parameters are float32; norms, softmax, rotations
      and logits are computed in float32.
    attention: what computes it: "xla"; "cudnn", whose kernels are for GPUs, bfloat16 and models
      without soft caps and relative positions; or "auto", cuDNN's where they can. Where the
      probabilities themselves are asked for, by the tap "attention", and of one token at a time, it
      is plain products in each case.

  Returns:
    The model, with the taps hidden_states (after each layer, before the final norm), queries and
    keys (after rotation), values, attention, embedding (mean of the tokens' last states), hidden,
    head and logits (where the spec has a head) and segment.

  Raises:
    KdjaxError: a field out of its range; when traced, a sequence longer than max_positions.
  """
  checks.one_of("remat", remat, REMAT)
  compute_dtype = checks.compute_dtype(dtype)
  check_attention(attention, spec, dtype)
  taps = LAYER_TAPS | {"embedding", "hidden", "segment"}
  if spec.head:
    taps |= {"logits", "head"}
  model = functional(
    lambda rngs: LanguageModel(
      spec, dtype=compute_dtype, remat=remat, attention=attention, rngs=rngs
    ),
    inputs=text_input(spec),
    taps=taps,
    num_classes=spec.vocab,
    spec=spec,
  )
  return model if spec.causal and spec.head else model._replace(decode=None)
