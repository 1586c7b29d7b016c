"""Layers run by one scan, or one by one with the key-value cache of decoding."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kdjax.models.expressions import resolve
from kdjax.models.layers import REMAT, named, scan_layers, stacked
from kdjax.models.transformer.block import Block, Context
from kdjax.models.transformer.norm import Norm
from kdjax.models.transformer.positions import relative_bucket, rope_tables, visible
from kdjax.models.transformer.sharing import runs_of, scan_shared
from kdjax.models.transformer.spec import Spec


class Cache(NamedTuple):
  """Keys and values, an array for each layer; the slot of a token is its position.

  Heads stand before slots, as the products of attention read them: no token needs a transposition.

  Attributes:
    keys: for each layer that computes attention [B, G, N, K].
    values: for each layer [B, G, N, K].
    memory: for each layer the keys and values of an encoder's states, each [B, G, S, K]; () of a
      model without an encoder.
    memory_mask: which of those states are seen, [B, 1, 1, S].
  """

  keys: tuple[Float[Array, "batch kv_head slot head_dim"], ...]
  values: tuple[Float[Array, "batch kv_head slot head_dim"], ...]
  memory: tuple[tuple[Array, Array], ...] = ()
  memory_mask: Bool[Array, "batch 1 1 source"] | None = None

  @property
  def places(self) -> Int[Array, "batch slot"]:
    """The position of each slot."""
    batch, _, slots, _ = self.keys[0].shape
    return jnp.broadcast_to(jnp.arange(slots)[None], (batch, slots))


class Stack(nnx.Module):
  """The layers of a transformer, with its relative positions and final norm."""

  def __init__(self, spec: Spec, *, dtype: Any, remat: str, attention: str, rngs: nnx.Rngs):
    block = functools.partial(Block, spec, dtype=dtype, attention=attention)
    own = sum(source == i for i, source in enumerate(spec.sources))
    self.blocks = stacked(lambda rngs: block(rngs=rngs), own, rngs)
    self.shares = own < spec.depth
    if self.shares:
      self.copies = stacked(lambda rngs: block(copies=True, rngs=rngs), spec.depth - own, rngs)
    if spec.position == "relative":
      table = 0.1 * jax.random.normal(rngs.params(), (spec.relative_buckets, spec.heads))
      self.relative = nnx.Param(table, **named(None, "heads"))
    if spec.final_norm:
      self.norm = Norm(spec.norm, spec.width, spec.norm_eps, rngs=rngs)
    self.spec = spec
    self.remat = remat

  def context(
    self,
    positions: Int[Array, "batch time"],
    segments: Int[Array, "batch time"] | None,
    *,
    key_positions: Int[Array, "batch source"] | None = None,
    plain: bool = False,
    **memory: Array | None,
  ) -> Context:
    """What the layers share when queries stand at `positions`.

    Args:
      positions: [B, T], from the start of each segment.
      segments: [B, T]; None where all is one segment.
      key_positions: of a cache's slots; None where keys stand where queries do.
      plain: positions are 0 .. T-1 in every row, so that causality alone needs no mask.
      **memory: `memory` and `memory_mask` of a decoder with an encoder.
    """
    spec = self.spec
    keys = positions if key_positions is None else key_positions
    any_local, all_local = any(spec.is_local), all(spec.is_local)

    def mask(window: int | None):
      if window is None and segments is None and (plain or not spec.causal):
        return None
      return visible(
        positions,
        keys,
        causal=spec.causal,
        query_segments=segments,
        key_segments=segments,
        window=window,
      )

    whole = None if all_local else mask(None)
    near = mask(spec.window) if any_local else None
    if any_local and not all_local and whole is None:
      whole = visible(positions, keys, causal=spec.causal)  # the layers pick one of two masks
    rope = local_rope = None
    if spec.position == "rope":
      rope = rope_tables(spec.rope, spec.head_dim, positions)
      own = spec.local_rope or spec.rope
      local_rope = rope_tables(own, spec.head_dim, positions) if any_local else None
    bias = None
    if spec.position == "relative":
      bias = self._relative_bias(positions, keys)
    return Context(
      rope=(rope, local_rope), mask=(whole, near), bias=bias, causal=spec.causal, **memory
    )

  def _relative_bias(self, positions: Array, keys: Array) -> Array:
    """[1 or B, H, T, S]: T5's learned score of each bucket of distances."""
    distance = keys[:, None, :] - positions[:, :, None]
    bucket = relative_bucket(
      distance,
      buckets=self.spec.relative_buckets,
      longest=self.spec.relative_distance,
      causal=self.spec.causal,
    )
    return jnp.moveaxis(self.relative[...][bucket], -1, 1)

  def _local(self, start: int | None = None, stop: int | None = None):
    """(static flag or None, scanned flags or None) of the layers start..stop-1."""
    flags = self.spec.is_local[start:stop]
    if all(flags) or not any(flags):
      return bool(flags and flags[0]), None
    return None, jnp.asarray(flags)

  def run(
    self,
    hidden: Float[Array, "batch time width"],
    context: Context,
    *,
    taps: frozenset[str] = frozenset(),
    rngs: nnx.Rngs | None = None,
    start: int = 0,
    stop: int | None = None,
    reduce: Callable[[Array, dict[str, Array]], Any] | None = None,
  ) -> tuple[Array, Any]:
    """Layers start..stop-1 on given states; the final norm is not applied.

    `reduce(what a layer reads, its taps)` says, inside the scan, what is collected in their place.
    """
    same, flags = self._local(start, stop)
    keys = None
    if rngs is not None:
      keys = jax.random.split(rngs.dropout(), self.spec.depth)[start:stop]

    def call(block, hidden, x, shared=None, asked=taps):
      local, key = x
      local = same if local is None else local
      out, seen = block(hidden, context, local=local, key=key, taps=asked, shared=shared)
      collected = {tap: seen[tap] for tap in taps & seen.keys()}
      return out, (seen, collected if reduce is None else reduce(hidden, collected))

    def plain(*args):
      out, (_, collected) = call(*args)
      return out, collected

    def sharing(*args):
      out, (seen, collected) = call(*args, asked=taps | {"queries", "keys"})
      return out, (collected, (seen["queries"], seen["keys"]))

    xs, remat = (flags, keys), REMAT[self.remat]
    if not self.shares:
      return scan_layers(self.blocks, plain, hidden, xs, start=start, stop=stop, remat=remat)
    runs = runs_of(self.spec.sources, start, self.spec.depth if stop is None else stop)
    return scan_shared(self.blocks, self.copies, runs, sharing, hidden, xs, remat)

  def fill(
    self, hidden: Array, context: Context, slots: int
  ) -> tuple[Float[Array, "batch time width"], Cache]:
    """All layers on the first T tokens, and a cache of N = `slots` that holds them."""
    taps = {"keys", "values"} | ({"memory_keys", "memory_values"} if self.spec.cross else set())
    hidden, seen = self.run(hidden, context, taps=frozenset(taps))
    room = ((0, 0), (0, 0), (0, slots - hidden.shape[1]), (0, 0))

    def held(tap: str) -> list[Array]:
      return [layer.swapaxes(1, 2) for layer in seen[tap]] if tap in seen else []

    keys, values = (tuple(jnp.pad(a, room) for a in held(tap)) for tap in ("keys", "values"))
    keys = tuple(keys[i] for i in self._computing)
    memory = tuple(zip(held("memory_keys"), held("memory_values"), strict=True))
    return hidden, Cache(keys, values, memory, context.memory_mask)

  def apart(self) -> list[Block]:
    """The layers one by one, for `extend`: each with weights of its own, expressions computed.

    They are held beside the stack while a text is written; computed for each token, an adapter or
    int8 values would cost as much as the token does.
    """

    def split(stack: Block) -> Iterator[Block]:
      graphdef, params, state = nnx.split(stack, nnx.Param, ...)
      for i in itertools.count():
        own, others = jax.tree.map(lambda a, i=i: a[i], (params, state))
        yield nnx.merge(graphdef, resolve(own), others)

    blocks, copies = split(self.blocks), split(self.copies) if self.shares else None
    return [next(blocks if i == own else copies) for i, own in enumerate(self.spec.sources)]

  @property
  def _computing(self) -> list[int]:
    """The layers that compute attention."""
    return [i for i, source in enumerate(self.spec.sources) if source == i]

  def extend(
    self,
    layers: Sequence[Block],
    hidden: Float[Array, "batch time width"],
    context: Context,
    positions: Int[Array, "batch time"],
    cache: Cache,
  ) -> tuple[Array, Cache]:
    """All layers on tokens at `positions`, which see what the cache holds and are added to it.

    The layers are a Python loop. A scan would copy each layer's weights out of their stack at every
    token, which is as much work as reading them; compile time grows with depth instead.
    """
    rows, groups = jnp.arange(hidden.shape[0]), jnp.arange(self.spec.kv_heads)
    place = rows[:, None, None], groups[None, :, None], positions[:, None, :]
    keys: list[Array] = []
    values: list[Array] = []
    queries = None  # of the layer whose attention the ones after it copy

    def add(held: list[Array], old: tuple[Array, ...], new: Array) -> Array:
      held.append(old[len(held)].at[place].set(new.swapaxes(1, 2)))
      return held[-1].swapaxes(1, 2)

    def remember(new_keys: Array, new_values: Array) -> tuple[Array, Array]:
      return add(keys, cache.keys, new_keys), add(values, cache.values, new_values)

    def remember_values(seen_keys: Array, new_values: Array) -> tuple[Array, Array]:
      return seen_keys, add(values, cache.values, new_values)

    for i, (layer, local) in enumerate(zip(layers, self.spec.is_local, strict=True)):
      across = tuple(a.swapaxes(1, 2) for a in cache.memory[i]) if cache.memory else None
      options = {"local": local, "across": across}
      if self.spec.sources[i] == i:
        taps = frozenset({"queries"} if self.shares else ())
        hidden, seen = layer(hidden, context, remember=remember, taps=taps, **options)
        queries = seen.get("queries")
      else:
        shared = queries, keys[-1].swapaxes(1, 2)
        hidden, _ = layer(hidden, context, remember=remember_values, shared=shared, **options)
    return hidden, cache._replace(keys=tuple(keys), values=tuple(values))

  def finish(self, hidden: Array) -> Array:
    """The final norm."""
    return self.norm(hidden) if self.spec.final_norm else hidden
