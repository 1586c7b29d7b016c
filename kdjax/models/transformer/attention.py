"""Attention: projections, rotations, and the product that XLA, cuDNN or a TPU kernel fuses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.layers import named, row_axes, sequence_parts
from kdjax.models.transformer.norm import Norm
from kdjax.models.transformer.positions import rotate
from kdjax.models.transformer.spec import Spec

INIT = nnx.initializers.normal(0.02)
ATTENTION = ("auto", "cudnn", "xla")  # names of what computes it
_MASKED = -1e30


def attend(
  query: Float[Array, "batch time head head_dim"],
  key: Float[Array, "batch source kv_head head_dim"],
  value: Float[Array, "batch source kv_head head_dim"],
  *,
  mask: Bool[Array, "batch 1 time source"] | None,
  scale: float,
  bias: Float[Array, "1 head time source"] | None = None,
  softcap: float | None = None,
  causal: bool = False,
  probabilities: bool = False,
  implementation: str = "auto",
) -> tuple[Float[Array, "batch time head head_dim"], Array | None]:
  """Scaled dot-product attention with grouped heads.

  Args:
    query: [B, T, H, K].
    key: [B, S, G, K], G divides H; query head h reads key head h // (H / G).
    value: [B, S, G, K].
    mask: True where a query sees a key; None where all do, or all before it if `causal`.
    scale: multiplies scores.
    bias: added to scores.
    softcap: scores become cap * tanh(scores / cap) before bias and mask.
    causal: without a mask, a query sees no key that stands after it.
    probabilities: also returns them, [B, H, T, S] float32.
    implementation: "cudnn", "xla", or "auto": cuDNN's kernels where they can compute it.

  Returns:
    [B, T, H, K] and the probabilities or None. Without softcap and probabilities, and of more than
    one query, it is `jax.nn.dot_product_attention`, whose fused paths never hold [T, S] arrays.

  Raises:
    KdjaxError: cuDNN, a mask and an odd length, which it has no gradient for.
  """
  parts = sequence_parts()
  if parts > 1 and key.shape[1] % parts == 0:
    key, value = _of_all_places(key), _of_all_places(value)
  if softcap is None and not probabilities and query.shape[1] > 1:
    if implementation == "cudnn" and parts > 1:
      raise KdjaxError(
        f"attention = 'cudnn' of texts that {parts} devices share (config.mesh.sequence): its"
        " kernels want whole ones; set attention = 'auto'"
      )
    if implementation == "auto":
      implementation = "cudnn" if cudnn_can(query, mask, bias) else "xla"
    elif implementation == "cudnn" and not _even(mask):
      raise KdjaxError(
        f"attention = 'cudnn' of {mask.shape[2]} queries on {mask.shape[3]} keys with a mask"
        " (packed rows, a window): it wants even numbers; change the sequence length by one, or"
        " set attention = 'auto'"
      )
    fused = functools.partial(
      jax.nn.dot_product_attention,
      scale=scale,
      is_causal=causal and mask is None,
      implementation=implementation,
    )
    if implementation == "xla":
      # Scores are computed again in the backward pass: they are cheaper than to keep, as [T, S].
      # cuDNN's kernels keep none.
      fused = jax.checkpoint(fused, prevent_cse=False)
    # It promotes bfloat16 scores to float32 inside, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
      return fused(query, key, value, bias, mask), None
  batch, time, heads, size = query.shape
  groups = key.shape[2]
  grouped = query.reshape(batch, time, groups, heads // groups, size)
  scores = jnp.einsum("btgrk,bsgk->bgrts", grouped, key, preferred_element_type=jnp.float32) * scale
  scores = scores.reshape(batch, heads, time, -1)
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + jnp.broadcast_to(bias.astype(jnp.float32), scores.shape)
  if mask is None and causal:
    mask = jnp.tril(jnp.ones((1, 1, *scores.shape[2:]), bool))
  if mask is not None:
    scores = jnp.where(mask, scores, _MASKED)
  probs = jax.nn.softmax(scores)
  shared = probs.reshape(batch, groups, heads // groups, time, -1).astype(value.dtype)
  out = jnp.einsum("bgrts,bsgk->btgrk", shared, value).reshape(query.shape)
  return out, probs if probabilities else None


def _of_all_places(states: Array) -> Array:
  """Keys or values [B, S, G, K] gathered along the places, which devices share out otherwise."""
  axes, ways = row_axes()
  rows = (axes or None) if states.shape[0] % ways == 0 else PartitionSpec.UNCONSTRAINED
  free = PartitionSpec.UNCONSTRAINED
  return jax.lax.with_sharding_constraint(states, PartitionSpec(rows, None, free, free))


def _even(mask: Array | None) -> bool:
  """Whether cuDNN has a gradient for a mask (or none) of this shape."""
  return mask is None or not (mask.shape[2] % 2 or mask.shape[3] % 2)


def cudnn_can(query: Array, mask: Array | None = None, bias: Array | None = None) -> bool:
  """Whether cuDNN's kernels can compute it here: see "A step on a GPU" in benchmarks/README.md."""
  return (
    jax.default_backend() == "gpu"
    and sequence_parts() == 1
    and query.dtype == jnp.bfloat16
    and bias is None
    and query.shape[-1] % 8 == 0
    and query.shape[-1] <= 128  # what an A100 can, too
    and _even(mask)
    and float(jax.devices()[0].compute_capability) >= 8.0
  )


def check_attention(name: str, spec: Spec, dtype: str) -> None:
  """Raises KdjaxError for an implementation that does not exist or cannot compute the model."""
  checks.one_of("attention", name, ATTENTION)
  if name != "cudnn":
    return
  if dtype != "bfloat16":
    raise KdjaxError(f"attention = 'cudnn' computes in bfloat16; dtype is {dtype!r}")
  if spec.attention_softcap is not None or spec.position == "relative":
    own = "relative positions" if spec.position == "relative" else "soft caps"
    raise KdjaxError(f"attention = 'cudnn' has no {own}, as this model has; take 'auto'")
  if spec.head_dim % 8 or spec.head_dim > 256:
    raise KdjaxError(
      f"attention = 'cudnn' wants a head_dim that 8 divides and of at most 256; this model's is"
      f" {spec.head_dim}; take 'auto'"
    )
  if (found := jax.default_backend()) != "gpu":
    raise KdjaxError(f"attention = 'cudnn' wants an NVIDIA GPU; jax runs on {found!r}; take 'auto'")


class Attention(nnx.Module):
  """Projections to and from heads, and `read` between them.

  A copying layer's, which is given queries and keys, projects values alone.
  """

  def __init__(
    self, spec: Spec, *, dtype: Any, attention: str, rngs: nnx.Rngs, copies: bool = False
  ):
    general = functools.partial(nnx.LinearGeneral, dtype=dtype, kernel_init=INIT, rngs=rngs)

    def into(heads: int, name: str) -> nnx.LinearGeneral:
      return general(
        spec.width,
        (heads, spec.head_dim),
        use_bias=spec.qkv_bias,
        kernel_metadata=named("embed", name, "head_dim"),
        bias_metadata=named(name, "head_dim"),
      )

    if not copies:
      self.query = into(spec.heads, "heads")
      self.key = into(spec.kv_heads, "kv_heads")
    self.value = into(spec.kv_heads, "kv_heads")
    self.out = general(
      (spec.heads, spec.head_dim),
      spec.width,
      axis=(-2, -1),
      use_bias=spec.out_bias,
      kernel_metadata=named("heads", "head_dim", "embed"),
      bias_metadata=named("embed"),
    )
    if spec.qk_norm and not copies:
      self.query_norm = Norm("rms", spec.head_dim, spec.norm_eps, rngs=rngs)
      self.key_norm = Norm("rms", spec.head_dim, spec.norm_eps, rngs=rngs)
    self.qk_norm = spec.qk_norm
    self.scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
    self.softcap = spec.attention_softcap
    self.implementation = attention

  def queries(self, hidden: Array, rope: tuple[Array, Array] | None) -> Array:
    query = self.query(hidden)
    query = self.query_norm(query) if self.qk_norm else query
    return checkpoint_name(query if rope is None else rotate(query, rope), "queries")

  def keys_values(self, hidden: Array, rope: tuple[Array, Array] | None) -> tuple[Array, Array]:
    key = self.key(hidden)
    key = self.key_norm(key) if self.qk_norm else key
    key = key if rope is None else rotate(key, rope)
    return checkpoint_name(key, "keys"), self.values(hidden)

  def values(self, hidden: Array) -> Array:
    return checkpoint_name(self.value(hidden), "values")

  def read(self, query, key, value, *, mask, bias=None, causal=False, probabilities=False):
    """(what `out` reads, [B, T, H, K]; probabilities or None)."""
    attended, probs = attend(
      query, key, value, mask=mask, bias=bias, scale=self.scale, softcap=self.softcap,
      causal=causal, probabilities=probabilities, implementation=self.implementation,
    )  # fmt: skip
    return checkpoint_name(attended, "attended"), probs
