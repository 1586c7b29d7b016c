"""Text that a small model drafts and a large one checks: the large one's, in fewer passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.generation.generate import Generation, check_generation, next_logits
from kdjax.generation.sampling import Sampling, filtered
from kdjax.models.base import Model, ModelVars
from kdjax.outputs import Outputs


class Speculation(NamedTuple):
  """How far the drafts went. B sequences.

  Attributes:
    passes: [B], of the large model after the prompt's, while the sequence was going on.
    accepted: [B], drafted tokens that were kept, of `passes` times `draft_tokens`.
  """

  passes: Int[Array, "batch"]
  accepted: Int[Array, "batch"]


class _Carry(NamedTuple):
  caches: tuple[Any, Any]
  written: Generation
  counted: Speculation


def speculate(
  model: Model,
  variables: ModelVars,
  draft: Model,
  draft_variables: ModelVars,
  prompts: Int[Array, "batch prompt"],
  prompt_lengths: Int[Array, "batch"],
  *,
  draft_tokens: int,
  rng: Array,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),  # noqa: B008, a tuple of numbers
  eos_ids: Sequence[int] = (),
  stops: Sequence[Sequence[int]] = (),
  pad_id: int = 0,
  rows: Int[Array, "batch"] | None = None,
) -> tuple[Generation, Speculation]:
  """`generate`, with tokens that another model drafts; the text is distributed as without it.

  In each round the draft model writes `draft_tokens` tokens one by one, and the model reads them
  all in one pass. The first is kept with probability min(1, p/q), p and q being its probabilities
  in the model's distribution and in the one that it was drawn from, then the next, and so on. In
  place of the first that is not kept comes one from max(p - q, 0), normalised; after all of them
  one more from p. Temperature and filters work on both sides' logits. Greedy, the text is the
  model's own.

  Args:
    model: that writes, such as `emulated`.
    variables: of the model; no gradient flows to them.
    draft: over the same tokens (of more, those beyond are not drawn).
    draft_variables: of it.
    prompts: see `generate`.
    prompt_lengths: see `generate`.
    draft_tokens: k, at least 1, static.
    rng: see `generate`; the draws are other ones than there.
    max_new_tokens: see `generate`; both models need k more positions.
    sampling: see `generate`.
    eos_ids: see `generate`.
    stops: see `generate`.
    pad_id: see `generate`.
    rows: see `generate`.

  Returns:
    (what was written, how far the drafts went).

  Raises:
    KdjaxError: see `generate`; for either model; `draft_tokens` below 1; a draft model with fewer
      tokens than the model.

  Reference:
    Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023,
    algorithm 1, https://arxiv.org/abs/2211.17192; with a fine-tuned small model as draft of the
    large one that it helps to emulate: Mitchell et al., ICLR 2024, section 4.4,
    https://arxiv.org/abs/2310.12962.
  """
  if not isinstance(draft_tokens, int) or draft_tokens < 1:
    raise KdjaxError(f"draft_tokens = {draft_tokens!r}; wanted an integer >= 1")
  if draft.num_classes < model.num_classes:
    raise KdjaxError(
      f"the draft model has {draft.num_classes} tokens and the model {model.num_classes}; both"
      " must be over the same ones"
    )
  for each in (model, draft):
    check_generation(each, prompts.shape[1], max_new_tokens, sampling, eos_ids, stops)
    check_generation(each, prompts.shape[1], max_new_tokens + draft_tokens, sampling)
  target = model.decode(jax.lax.stop_gradient(variables))
  drafting = draft.decode(jax.lax.stop_gradient(draft_variables))
  batch, k, vocab = prompts.shape[0], draft_tokens, model.num_classes
  rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else rows
  own_keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)

  def ending(written: Generation, before: Int[Array, "batch"]) -> Generation:
    """What was written, cut after the first new token that ends it and at N tokens."""
    place = jnp.arange(max_new_tokens, dtype=jnp.int32)[None]
    new = (place >= before[:, None]) & (place < written.lengths[:, None])
    ends = _ends(written.tokens, eos_ids, stops) & new
    first = jnp.where(ends.any(1), jnp.argmax(ends, axis=1).astype(jnp.int32) + 1, max_new_tokens)
    lengths = jnp.minimum(written.lengths, first)
    kept = place < lengths[:, None]
    return Generation(
      tokens=jnp.where(kept, written.tokens, pad_id),
      lengths=lengths,
      log_probs=jnp.where(kept, written.log_probs, 0.0),
      sample_log_probs=jnp.where(kept, written.sample_log_probs, 0.0),
      finished=written.finished | ends.any(1),
    )

  def done(written: Generation) -> Bool[Array, "batch"]:
    return written.finished | (written.lengths >= max_new_tokens)

  def advance(carry: _Carry) -> _Carry:
    written, (cache, draft_cache) = carry.written, carry.caches
    n, over = written.lengths, done(written)
    keys = jax.vmap(lambda key, step: jax.random.split(jax.random.fold_in(key, step), 3))(
      own_keys, n
    )
    at = jnp.take_along_axis(written.tokens, n[:, None] - 1, axis=1)[:, 0]
    start = begin + n - 1

    def one(carry, step):
      token, cache = carry
      out, cache = drafting.extend(token[:, None], (start + step)[:, None], cache)
      logits = next_logits(out)[:, :vocab]
      own = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys[:, 0])
      probs = _probs(logits, sampling)
      new = _draw(own, probs)
      return (new, cache), (new, probs)

    # One step more than is used: it puts the last draft into the cache.
    steps = jnp.arange(k + 1, dtype=jnp.int32)
    (_, draft_cache), (drafted, q) = jax.lax.scan(one, (at, draft_cache), steps)
    drafted, q = jnp.swapaxes(drafted, 0, 1)[:, :k], jnp.swapaxes(q, 0, 1)
    places = start[:, None] + steps[None]
    out, cache = target.extend(jnp.concatenate([at[:, None], drafted], 1), places, cache)
    logits = _all_logits(out)
    p = _probs(logits, sampling)
    chosen = drafted[..., None]
    ratio = [jnp.take_along_axis(x[:, :k], chosen, axis=-1)[..., 0] for x in (p, q)]
    coins = jax.vmap(lambda key: jax.random.uniform(key, (k,)))(keys[:, 1])
    kept = jnp.cumprod(coins * ratio[1] < ratio[0], axis=1).sum(1).astype(jnp.int32)  # 0 .. k
    here = kept[:, None, None]
    p_here = jnp.take_along_axis(p, here, axis=1)[:, 0]
    # After all drafts there is none to take away.
    q_here = jnp.where(kept[:, None] < k, jnp.take_along_axis(q, here, axis=1)[:, 0], 0.0)
    rest = jnp.maximum(p_here - q_here, 0.0)
    # Only rounding leaves nothing where a draft was refused.
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p_here)
    last = _draw(keys[:, 2], rest)
    tokens = jnp.where(steps[None] < kept[:, None], jnp.pad(drafted, ((0, 0), (0, 1))), 0)
    tokens = jnp.where(steps[None] == kept[:, None], last[:, None], tokens)
    chosen = tokens[..., None]
    said = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)[..., 0]
    drawn = jnp.log(jnp.take_along_axis(p, chosen, axis=-1)[..., 0])
    count = jnp.where(over, 0, jnp.minimum(kept + 1, max_new_tokens - n))

    def put(old: Array, new: Array) -> Array:
      place = jnp.arange(max_new_tokens, dtype=jnp.int32)[None] - n[:, None]
      value = jnp.take_along_axis(new, jnp.clip(place, 0, k), axis=1)
      return jnp.where((place >= 0) & (place < count[:, None]), value, old)

    written = Generation(
      tokens=put(written.tokens, tokens),
      lengths=n + count,
      log_probs=put(written.log_probs, said),
      sample_log_probs=put(written.sample_log_probs, drawn),
      finished=written.finished,
    )
    written = ending(written, n)
    counted = Speculation(
      passes=carry.counted.passes + (~over).astype(jnp.int32),
      accepted=carry.counted.accepted + jnp.minimum(kept, written.lengths - n),
    )
    return _Carry((cache, draft_cache), written, counted)

  out, begin, cache = target.prefill(prompts, prompt_lengths, max_new_tokens + k)
  _, _, draft_cache = drafting.prefill(prompts, prompt_lengths, max_new_tokens + k)
  first = next_logits(out)
  probs = _probs(first, sampling)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(own_keys)
  tokens = _draw(keys, probs)
  said, drawn = (
    jnp.take_along_axis(x, tokens[:, None], axis=-1)
    for x in (jax.nn.log_softmax(first), jnp.log(probs))
  )
  empty = jnp.zeros((batch, max_new_tokens), jnp.float32)
  written = Generation(
    tokens=jnp.full((batch, max_new_tokens), pad_id, jnp.int32).at[:, 0].set(tokens),
    lengths=jnp.ones(batch, jnp.int32),
    log_probs=empty.at[:, :1].set(said),
    sample_log_probs=empty.at[:, :1].set(drawn),
    finished=jnp.zeros(batch, bool),
  )
  none = jnp.zeros(batch, jnp.int32)
  carry = _Carry((cache, draft_cache), ending(written, none), Speculation(none, none))
  carry = jax.lax.while_loop(lambda c: ~done(c.written).all(), advance, carry)
  return carry.written, carry.counted


def _all_logits(out: Outputs) -> Float[Array, "batch time vocab"]:
  """Logits of the few tokens of one pass."""
  return (out.head.logits(out.hidden) if out.logits is None else out.logits).astype(jnp.float32)


def _probs(
  logits: Float[Array, "*batch vocab"], sampling: Sampling
) -> Float[Array, "*batch vocab"]:
  """The distribution that tokens are drawn from; all on the likeliest one at temperature 0."""
  temperature = jnp.asarray(sampling.temperature, jnp.float32)
  warm = sampling._replace(temperature=jnp.where(temperature > 0, temperature, 1.0))
  greedy = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
  return jnp.where(temperature > 0, jax.nn.softmax(filtered(logits, warm)), greedy)


def _draw(keys: Array, probs: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
  """A token for each row, of probabilities that need not be normalised."""
  return jax.vmap(jax.random.categorical)(keys, jnp.log(probs)).astype(jnp.int32)


def _ends(tokens: Int[Array, "batch new"], eos_ids, stops) -> Bool[Array, "batch new"]:
  """Where a token ends a text or completes a stop sequence."""
  ends = (tokens[..., None] == jnp.asarray(eos_ids, jnp.int32)[None, None]).any(-1)
  place = jnp.arange(tokens.shape[1])[None]
  for stop in stops:
    same = place >= len(stop) - 1
    for back, token in enumerate(reversed(stop)):
      same = same & (jnp.roll(tokens, back, axis=1) == token)
    ends = ends | same
  return ends
