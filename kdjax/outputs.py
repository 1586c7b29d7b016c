"""What a model hands over: one pytree, filled only where an objective asked for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import KdjaxError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """The last linear layer of a model, as arrays.

  Attributes:
    weight: the kernel [D, V]; or [V, D] where it is a tied embedding, which is then read, and gets
      its gradient, as it lies.
    bias: [V], or None.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them (Gemma 2 has one).
    tied: whether `weight` is [V, D].
  """

  weight: Float[Array, "width vocab"] | Float[Array, "vocab width"]
  bias: Float[Array, "vocab"] | None = None
  softcap: float | None = dataclasses.field(default=None, metadata={"static": True})
  tied: bool = dataclasses.field(default=False, metadata={"static": True})

  @property
  def kernel(self) -> Float[Array, "width vocab"]:
    return self.weight.T if self.tied else self.weight

  @property
  def num_classes(self) -> int:
    return self.weight.shape[0 if self.tied else -1]

  def product(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
    """float32 product with the weight, taken in the dtype of `hidden`."""
    contracted = ((hidden.ndim - 1,), (1 if self.tied else 0,)), ((), ())
    return jax.lax.dot_general(
      hidden,
      self.weight.astype(hidden.dtype),
      contracted,
      preferred_element_type=jnp.float32,
    )

  def finish(self, product: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
    """Logits of a product: its bias and cap."""
    if self.bias is not None:
      product = product + jnp.broadcast_to(self.bias.astype(jnp.float32), product.shape)
    if self.softcap is not None:
      product = self.softcap * jnp.tanh(product / self.softcap)
    return product

  def logits(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
    """float32 logits of what the head reads; the product is taken in the dtype of `hidden`."""
    return self.finish(self.product(hidden))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """The outputs of one forward pass. Every field is also the name of a tap.

  B batch, T time or patches, D width, H heads, K head width, L layers, V classes or vocabulary.
  Models without a time axis leave T out. A field that was not asked for is None and costs nothing.

  Attributes:
    logits: [B, V] or [B, T, V], unnormalised.
    distillation_logits: [B, V], of the head that reads DeiT's distillation token; `logits` is then
      the mean of both heads.
    head_logits: name to logits [B, V] of each of several heads; `logits` is then what the model
      makes of them.
    hidden: [B, D] or [B, T, D], what the last linear layer (the head) reads.
    head: that layer; `head.logits(hidden)` is `logits`.
    hidden_states: after each layer, [L, B, T, D], or a tuple of [B, D_l] where widths differ.
    queries: [L, B, T, H, K], after any rotary embedding, before scaling.
    keys: [L, B, T, H, K].
    values: [L, B, T, H, K].
    attention: probabilities, [L, B, H, T, T]; asking for them gives up fused attention.
    features: stage name to feature map [B, height, width, channel].
    preactivations: the same maps before the stage's last activation.
    embedding: [B, D], pooled, before the head.
    decoder_states: after each block of a masked autoencoder's decoder, [L, B, 1 + T, D], the class
      token first, then all places in order.
    reconstruction: [B, T, P], the pixels of each patch as that decoder has them.
    masked: bool [B, T], which patches the encoder did not see.
    policy: [B, A, 2], alpha and beta of a Beta distribution for each action.
    perceived: [B, height, width, channel], logits of what is around, seen from above.
    segment: `segment(hidden, start, stop)` runs layers start..stop-1 of this model on given hidden
      states. The weights are frozen; gradients pass through to `hidden`.
    signal: a teacher's stored signal (see `kdjax.losses.signals`) in place of live logits.
  """

  logits: Float[Array, "*batch vocab"] | None = None
  distillation_logits: Float[Array, "batch vocab"] | None = None
  head_logits: Mapping[str, Float[Array, "batch vocab"]] | None = None
  hidden: Float[Array, "*batch width"] | None = None
  head: Head | None = None
  hidden_states: Float[Array, "layer *batch width"] | tuple[Array, ...] | None = None
  queries: Float[Array, "layer batch time head head_width"] | None = None
  keys: Float[Array, "layer batch time head head_width"] | None = None
  values: Float[Array, "layer batch time head head_width"] | None = None
  attention: Float[Array, "layer batch head time time"] | None = None
  features: Mapping[str, Float[Array, "batch height width channel"]] | None = None
  preactivations: Mapping[str, Float[Array, "batch height width channel"]] | None = None
  embedding: Float[Array, "batch width"] | None = None
  decoder_states: Float[Array, "layer batch time width"] | None = None
  reconstruction: Float[Array, "batch time pixel"] | None = None
  masked: Bool[Array, "batch time"] | None = None
  policy: Float[Array, "batch action 2"] | None = None
  perceived: Float[Array, "batch height width channel"] | None = None
  segment: jax.tree_util.Partial | None = None
  signal: object | None = None

  def require(self, tap: str, who: str):
    """Returns the field `tap`; raises KdjaxError naming `who` when it was not handed over."""
    value = getattr(self, tap)
    if value is None:
      raise KdjaxError(f"{who} did not hand over the tap {tap!r}, which this objective reads")
    return value


TAPS = frozenset(field.name for field in dataclasses.fields(Outputs))
