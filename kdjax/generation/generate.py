"""Text, token by token, as a pure function: it runs by itself or inside a compiled step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.generation.sampling import Sampling, check_sampling, draw, log_prob_of
from kdjax.models.base import Decoding, Model, ModelVars
from kdjax.models.transformer import Seq2SeqSpec, Spec
from kdjax.outputs import Outputs


class Generation(NamedTuple):
  """What a model wrote. B sequences of N = max_new_tokens places.

  Attributes:
    tokens: [B, N], with what ended the sequence (an end token, a stop sequence); padding after it.
    lengths: [B], how many tokens are not padding.
    log_probs: [B, N], of each token under the model: temperature 1 and nothing cut. In nats, 0 at
      padding.
    sample_log_probs: [B, N], of each token under the distribution that it was drawn from; 0 where
      greedy, and at padding.
    finished: [B], whether the sequence ended by itself rather than at N tokens.
  """

  tokens: Int[Array, "batch new"]
  lengths: Int[Array, "batch"]
  log_probs: Float[Array, "batch new"]
  sample_log_probs: Float[Array, "batch new"]
  finished: Bool[Array, "batch"]


class _Carry(NamedTuple):
  step: Int[Array, ""]
  cache: Any
  written: Generation


def generate(
  model: Model,
  variables: ModelVars,
  prompts: Int[Array, "batch prompt"],
  prompt_lengths: Int[Array, "batch"],
  *,
  rng: Array,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),  # noqa: B008, a tuple of numbers
  eos_ids: Sequence[int] = (),
  stops: Sequence[Sequence[int]] = (),
  pad_id: int = 0,
  rows: Int[Array, "batch"] | None = None,
) -> Generation:
  """Continues prompts until each has ended; an encoder-decoder writes what belongs to them.

  A prompt's keys and values are computed in one pass, those of each new token in a step of its own.
  A row's continuation depends on the other rows by rounding alone: its random numbers are those of
  (rng, its number in `rows`, the step).

  Args:
    model: one that decodes.
    variables: of the model; no gradient flows to them.
    prompts: int32 [B, P], right-padded; what the padding is does not matter.
    prompt_lengths: [B], each from 1 to P.
    rng: a key.
    max_new_tokens: N, static.
    sampling: how tokens are drawn.
    eos_ids: static; each of them ends a sequence.
    stops: static; sequences of tokens, each of which ends a text that has it among its new tokens.
    pad_id: what follows the end.
    rows: [B], a number for each row; 0 .. B-1 where None.

  Returns:
    What was written.

  Raises:
    KdjaxError: a model that does not generate, no room for so many tokens, an option out of its
      range.
  """
  check_generation(model, prompts.shape[1], max_new_tokens, sampling, eos_ids, stops)
  return continued(
    model.decode(jax.lax.stop_gradient(variables)),
    prompts,
    prompt_lengths,
    rng=rng,
    max_new_tokens=max_new_tokens,
    sampling=sampling,
    eos_ids=eos_ids,
    stops=stops,
    pad_id=pad_id,
    rows=rows,
  )


def continued(
  decoding: Decoding,
  prompts: Int[Array, "batch prompt"],
  prompt_lengths: Int[Array, "batch"],
  *,
  rng: Array,
  max_new_tokens: int,
  sampling: Sampling,
  eos_ids: Sequence[int] = (),
  stops: Sequence[Sequence[int]] = (),
  pad_id: int = 0,
  rows: Int[Array, "batch"] | None = None,
  given: tuple[Int[Array, "batch new"], Int[Array, "batch"]] | None = None,
) -> Generation:
  """`generate` with a model that is laid out already, such as a mixture; nothing is checked.

  With `given`, tokens [B, N] and counts [B], the first so many new tokens of a row are those and
  not drawn; their `sample_log_probs` are 0.
  """
  batch = prompts.shape[0]
  rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else rows
  keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)

  def write(written: Generation, logits: Float[Array, "batch vocab"], step) -> Generation:
    """One more token, drawn from what the model says about it."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    drawn, sample_log_prob = draw(own, logits, sampling)
    if given is not None:
      chosen = jax.lax.dynamic_index_in_dim(given[0], step, 1, keepdims=False)
      drawn = jnp.where(step < given[1], chosen, drawn)
      sample_log_prob = jnp.where(step < given[1], 0.0, sample_log_prob)
    going = ~written.finished
    new = (
      jnp.where(going, drawn, pad_id),
      jnp.where(going, log_prob_of(logits, drawn), 0.0),
      jnp.where(going, sample_log_prob, 0.0),
    )
    arrays = written.tokens, written.log_probs, written.sample_log_probs
    tokens, log_probs, sample_log_probs = (
      jax.lax.dynamic_update_slice_in_dim(a, b[:, None], step, 1)
      for a, b in zip(arrays, new, strict=True)
    )
    ends = _ends(tokens, step, eos_ids, stops)
    lengths = written.lengths + going.astype(jnp.int32)
    return Generation(tokens, lengths, log_probs, sample_log_probs, written.finished | ends)

  def going(carry: _Carry) -> Bool[Array, ""]:
    return (carry.step < max_new_tokens) & ~carry.written.finished.all()

  def advance(carry: _Carry) -> _Carry:
    last = jax.lax.dynamic_slice_in_dim(carry.written.tokens, carry.step - 1, 1, axis=1)
    # A finished row runs along, on padding that nobody reads.
    out, cache = decoding.extend(last, (begin + carry.step - 1)[:, None], carry.cache)
    return _Carry(carry.step + 1, cache, write(carry.written, next_logits(out), carry.step))

  out, begin, cache = decoding.prefill(prompts, prompt_lengths, max_new_tokens)
  empty = Generation(
    tokens=jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
    lengths=jnp.zeros(batch, jnp.int32),
    log_probs=jnp.zeros((batch, max_new_tokens), jnp.float32),
    sample_log_probs=jnp.zeros((batch, max_new_tokens), jnp.float32),
    finished=jnp.zeros(batch, bool),
  )
  first = write(empty, next_logits(out), jnp.int32(0))
  return jax.lax.while_loop(going, advance, _Carry(jnp.int32(1), cache, first)).written


def next_logits(out: Outputs) -> Float[Array, "batch vocab"]:
  """What the outputs [B, 1, ...] of a decoding say about the next token."""
  return out.head.logits(out.hidden[:, 0]) if out.logits is None else out.logits[:, 0]


def _ends(
  tokens: Int[Array, "batch new"], step: Array, eos_ids: Sequence[int], stops
) -> Bool[Array, "batch"]:
  """Whether the token at `step` is an end token or completes a stop sequence."""
  last = jax.lax.dynamic_slice_in_dim(tokens, step, 1, axis=1)
  ends = (last == jnp.asarray([eos_ids], jnp.int32)).any(-1)
  for stop in stops:
    if len(stop) > tokens.shape[1]:
      continue
    start = step + 1 - len(stop)  # the slice would be moved where this is negative
    newest = jax.lax.dynamic_slice_in_dim(tokens, jnp.maximum(start, 0), len(stop), axis=1)
    ends |= (start >= 0) & (newest == jnp.asarray([stop], jnp.int32)).all(-1)
  return ends


def check_generation(
  model: Model,
  prompt_length: int,
  max_new_tokens: int,
  sampling: Sampling,
  eos_ids: Sequence[int] = (),
  stops: Sequence[Sequence[int]] = (),
) -> None:
  """Raises KdjaxError for what `generate` cannot do; see there."""
  if model.decode is None:
    raise KdjaxError(
      "this model cannot generate: it has no cache to decode with. What generates is a causal"
      " language model with a head, or an encoder-decoder; encoders do not"
    )
  if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
    raise KdjaxError(f"max_new_tokens = {max_new_tokens!r}; wanted an integer >= 1")
  if prompt_length < 1:
    raise KdjaxError("an empty prompt; give at least one token, such as the one that begins a text")
  if prompt_length > model.spec.room(max_new_tokens):
    raise _too_long(model.spec, prompt_length, max_new_tokens)
  for name, ids in [("eos_ids", eos_ids), *((f"stops[{i}]", s) for i, s in enumerate(stops))]:
    if wrong := [i for i in ids if not 0 <= i < model.num_classes]:
      raise KdjaxError(f"{name} has {wrong[0]}; wanted ids below {model.num_classes}")
    if not ids and name != "eos_ids":
      raise KdjaxError(f"{name} is empty; a stop sequence has at least one token")
  check_sampling(sampling)


def _too_long(spec: Spec | Seq2SeqSpec, prompt_length: int, new: int) -> KdjaxError:
  told = f"a prompt of {prompt_length} tokens and max_new_tokens = {new} are more than"
  if isinstance(spec, Seq2SeqSpec):
    most = spec.encoder.max_positions, spec.decoder.max_positions
    return KdjaxError(
      f"{told} the {most[0]} that the encoder and the {most[1]} that the decoder has"
      " positions for; shorten the prompt, or generate less"
    )
  most = spec.max_positions
  return KdjaxError(
    f"{told} the model's max_positions = {most}; shorten the prompt, or generate at most"
    f" {max(most - prompt_length, 0)}"
  )
