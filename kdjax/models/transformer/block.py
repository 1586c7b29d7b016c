"""One transformer layer, for every family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kdjax.models.layers import linear
from kdjax.models.transformer.attention import INIT, Attention
from kdjax.models.transformer.norm import Norm
from kdjax.models.transformer.spec import Spec

LAYER_TAPS = frozenset({"hidden_states", "queries", "keys", "values", "attention"})
# What is inside a layer and too wide to be kept of all of them: for `Stack.run` with `reduce`.
INNER_TAPS = frozenset({"attention_input", "attended", "mlp_input", "neurons"})

_ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
  "relu": jax.nn.relu,
}


class Context(NamedTuple):
  """What all layers of one pass share. A pair holds the value of global and of local layers.

  Attributes:
    rope: cosine and sine tables.
    mask: which key each query sees, [B, 1, T, S].
    bias: of relative positions, [1, H, T, S].
    causal: where there is no mask, a query sees nothing after it.
    memory: an encoder's states, [B, S, D]; None where each layer is given its keys and values.
    memory_mask: which of them each query sees, [B, 1, T, S].
  """

  rope: tuple[Any, Any] = (None, None)
  mask: tuple[Any, Any] = (None, None)
  bias: Array | None = None
  causal: bool = False
  memory: Array | None = None
  memory_mask: Array | None = None


def _pick(pair: tuple[Any, Any], local: Array | bool) -> Any:
  """The value for this layer; `local` is static where all layers are alike."""
  if isinstance(local, bool):
    return pair[local]
  return jax.tree.map(lambda whole, near: jnp.where(local, near, whole), *pair)


class MLP(nnx.Module):
  """Up, activation (times a gate), down."""

  def __init__(self, spec: Spec, *, dtype: Any, rngs: nnx.Rngs):
    project = functools.partial(
      linear, use_bias=spec.mlp_bias, kernel_init=INIT, dtype=dtype, rngs=rngs
    )
    self.up = project(spec.width, spec.mlp_width, ("embed", "mlp"))
    if spec.gated:
      self.gate = project(spec.width, spec.mlp_width, ("embed", "mlp"))
    self.down = project(spec.mlp_width, spec.width, ("mlp", "embed"))
    self.gated = spec.gated
    self.activation = spec.activation

  def __call__(self, hidden: Array) -> Array:
    return self.down(self.neurons(hidden))

  def neurons(self, hidden: Array) -> Array:
    """What `down` reads, [B, T, M]."""
    activation = _ACTIVATIONS[self.activation]
    # The derivative is rebuilt from the inputs, which keeps one wide array in place of several.
    if self.gated:
      gated = jax.checkpoint(lambda gate, up: activation(gate) * up, prevent_cse=False)
      return gated(self.gate(hidden), self.up(hidden))
    return jax.checkpoint(activation, prevent_cse=False)(self.up(hidden))


class Block(nnx.Module):
  """Attention and MLP with their norms, and cross-attention between them where the spec has it."""

  def __init__(
    self, spec: Spec, *, dtype: Any, attention: str, rngs: nnx.Rngs, copies: bool = False
  ):
    attend = functools.partial(Attention, spec, dtype=dtype, attention=attention, rngs=rngs)
    norm = functools.partial(Norm, spec.norm, spec.width, spec.norm_eps, rngs=rngs)
    self.norm_attention = norm()
    self.attention = attend(copies=copies)
    if spec.cross:
      self.norm_cross = norm()
      self.cross_attention = attend()
    self.norm_mlp = norm()
    self.mlp = MLP(spec, dtype=dtype, rngs=rngs)
    if spec.block == "sandwich":
      self.norm_attention_out = norm()
      self.norm_mlp_out = norm()
    self.dropout = nnx.Dropout(spec.dropout)
    self.form = spec.block
    self.cross = spec.cross

  def __call__(
    self,
    hidden: Float[Array, "batch time width"],
    context: Context,
    *,
    local: Array | bool = False,
    key: Array | None = None,
    taps: frozenset[str] = frozenset(),
    remember: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    across: tuple[Array, Array] | None = None,
    shared: tuple[Array, Array] | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Runs the layer.

    Args:
      hidden: [B, T, D].
      context: of this pass.
      local: whether this layer is a local one.
      key: of dropout; None drops nothing.
      taps: what to collect.
      remember: `remember(keys, values)` puts them in a cache and returns all that can be seen.
      across: the layer's keys and values of an encoder's states; computed where None.
      shared: the queries and keys of a layer that copies its attention from another.

    Returns:
      [B, T, D] and the collected arrays.
    """
    rngs = None if key is None else nnx.Rngs(key)
    drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)
    rope, mask = _pick(context.rope, local), _pick(context.mask, local)
    normed = hidden if self.form == "post" else self.norm_attention(hidden)
    if shared is None:
      queries = self.attention.queries(normed, rope)
      own = keys, values = self.attention.keys_values(normed, rope)
    else:
      queries, keys = shared
      own = keys, values = keys, self.attention.values(normed)
    attended, probs = self.attention.read(
      queries,
      *(own if remember is None else remember(keys, values)),
      mask=mask,
      bias=context.bias,
      causal=context.causal,
      probabilities="attention" in taps,
    )
    added = self.attention.out(attended)
    if self.cross and across is None:
      across = self.cross_attention.keys_values(context.memory, None)
    if self.form == "parallel":
      read = self.norm_mlp(hidden)
      neurons = self.mlp.neurons(read)
      out = hidden + drop(added) + drop(self.mlp.down(neurons))
    else:
      out, read, neurons = self._sequential(hidden, added, across, context.memory_mask, drop)
    given = {
      "hidden_states": out,
      "queries": queries,
      "keys": keys,
      "values": values,
      "attention": probs,
      "attention_input": normed,
      "attended": attended,
      "mlp_input": read,
      "neurons": neurons,
    }
    if self.cross:
      given |= {"memory_keys": across[0], "memory_values": across[1]}
    return out, {tap: given[tap] for tap in taps & given.keys()}

  def _sequential(
    self, hidden: Array, added: Array, across, mask: Array | None, drop
  ) -> tuple[Array, Array, Array]:
    """Adds attention, then cross-attention, then the MLP, each with its norm.

    Returns:
      The layer's output, what its MLP reads, and what `down` of the MLP reads.
    """
    if self.form == "sandwich":
      added = self.norm_attention_out(added)
    hidden = hidden + drop(added)
    if self.form == "post":
      hidden = self.norm_attention(hidden)
    if self.cross:
      queries = self.cross_attention.queries(self.norm_cross(hidden), None)
      seen, _ = self.cross_attention.read(queries, *across, mask=mask)
      hidden = hidden + drop(self.cross_attention.out(seen))
    hidden = checkpoint_name(hidden, "between")
    read = hidden if self.form == "post" else self.norm_mlp(hidden)
    neurons = self.mlp.neurons(read)
    out = self.mlp.down(neurons)
    out = hidden + drop(self.norm_mlp_out(out) if self.form == "sandwich" else out)
    return self.norm_mlp(out) if self.form == "post" else out, read, neurons
