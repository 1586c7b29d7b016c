"""What a transformer is made of: one description for every family."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdjax.models import checks
from kdjax.models.transformer.sharing import is_map

BLOCKS = ("pre", "post", "sandwich", "parallel")
POSITIONS = ("rope", "learned", "relative", "none")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu")
NORMS = ("rms", "layer")
SCALINGS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embeddings on the first `fraction` of each head.

  Attributes:
    theta: base of the frequencies.
    fraction: share of the head's dimensions that rotate, in (0, 1].
    scaling: None; ("linear", factor); or ("llama3", factor, low_freq_factor, high_freq_factor,
      original_max_positions).
  """

  theta: float = 10000.0
  fraction: float = 1.0
  scaling: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
  """A stack of transformer layers with its embeddings and head. The defaults are Llama's.

  Attributes:
    family: whose checkpoints have these weights; see `kdjax.models.convert`.
    vocab: V, rows of the embedding and size of the logits.
    width: D, size of the residual stream.
    depth: L, number of layers.
    heads: H, query heads.
    kv_heads: key and value heads; divides `heads`.
    head_dim: K, size of each head; `heads * head_dim` may differ from `width`.
    mlp_width: hidden size of the MLP.
    max_positions: longest sequence that the positions allow.
    causal: a position sees itself and what is before it; False: the whole segment.
    block: where norms stand. "pre" (Llama), "post" (BERT), "sandwich" (both, Gemma), "parallel"
      (attention and MLP read the same input, GPT-NeoX).
    norm: "rms" or "layer".
    norm_eps: added to the variance.
    activation: of the MLP.
    gated: the MLP multiplies its activation with a second projection.
    position: "rope", "learned", "relative" (T5's buckets) or "none".
    rope: of all layers, or of those that are not local where `local_rope` is given.
    local_rope: of the local layers.
    window: a local layer's position sees this many positions, itself among them.
    local: for each layer whether it is local; () for all when `window` is given, else none.
    qk_norm: an RMS norm on each query and key head.
    attention_scale: multiplies scores; `head_dim ** -0.5` where None.
    attention_softcap: scores become cap * tanh(scores / cap).
    logit_softcap: the same for logits.
    embed_scale: multiplies embeddings.
    hidden_scale: multiplies what the head reads.
    qkv_bias, out_bias, mlp_bias, head_bias: which linear layers have one.
    tied: the head is the embedding, transposed.
    head: whether there is one; an encoder without gives embeddings only.
    head_transform: a dense layer, activation and norm before the head (BERT).
    final_norm: a norm after the last layer.
    embed_norm: a norm on the embeddings (BERT).
    token_types: rows of the token type embedding; 0 for none.
    position_offset: index of position 0 in a learned table (RoBERTa has 2).
    relative_buckets, relative_distance: of T5's relative positions.
    attention_from: for each layer the layer whose attention map it uses, its own or the one that
      the layer before uses; () for all their own. See `kdjax.models.transformer.sharing`.
    cross: each layer also attends to an encoder's states.
    dropout: on embeddings and on each branch, when training; in [0, 1).
  """

  vocab: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int = 2048
  causal: bool = True
  block: str = "pre"
  norm: str = "rms"
  norm_eps: float = 1e-6
  activation: str = "silu"
  gated: bool = True
  position: str = "rope"
  rope: Rope = Rope()
  local_rope: Rope | None = None
  window: int | None = None
  local: tuple[bool, ...] = ()
  qk_norm: bool = False
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  embed_scale: float = 1.0
  hidden_scale: float = 1.0
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  head_bias: bool = False
  tied: bool = True
  head: bool = True
  head_transform: bool = False
  final_norm: bool = True
  embed_norm: bool = False
  token_types: int = 0
  position_offset: int = 0
  relative_buckets: int = 32
  relative_distance: int = 128
  attention_from: tuple[int, ...] = ()
  cross: bool = False
  dropout: float = 0.0
  family: str = "llama"

  def __post_init__(self):
    checks.positive(
      vocab=self.vocab,
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      kv_heads=self.kv_heads,
      head_dim=self.head_dim,
      mlp_width=self.mlp_width,
      max_positions=self.max_positions,
    )
    divides = self.heads % self.kv_heads == 0
    checks.require(divides, "kv_heads", self.kv_heads, f"a divisor of heads, {self.heads}")
    checks.one_of("block", self.block, BLOCKS)
    checks.one_of("norm", self.norm, NORMS)
    checks.one_of("activation", self.activation, ACTIVATIONS)
    checks.one_of("position", self.position, POSITIONS)
    checks.dropout_rate(self.dropout)
    for rope in (self.rope, self.local_rope):
      if rope is not None and rope.scaling is not None:
        checks.one_of("rope.scaling", rope.scaling[0], SCALINGS)
    fits = not self.local or len(self.local) == self.depth
    checks.require(fits, "local", self.local, f"one entry for each of the {self.depth} layers")
    if self.attention_from:
      fits = len(self.attention_from) == self.depth and is_map(self.attention_from, self.is_local)
      wanted = f"for each of {self.depth} layers itself or what the layer before (of its kind) has"
      checks.require(fits, "attention_from", self.attention_from, wanted)

  @property
  def stacks(self) -> dict[str, Spec]:
    """Name of each stack of layers among the parameters to its spec."""
    return {"stack": self}

  @property
  def is_local(self) -> tuple[bool, ...]:
    """For each layer, whether it sees a window only."""
    return self.local or (self.window is not None,) * self.depth

  @property
  def sources(self) -> tuple[int, ...]:
    """For each layer the one whose attention map it uses."""
    return self.attention_from or tuple(range(self.depth))

  def room(self, new: int) -> int:
    """How many tokens a prompt may have, so that `new` more can be written."""
    return self.max_positions - new

  def replace(self, **changes: Any) -> Spec:
    """The spec with fields changed, checked again."""
    return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Seq2SeqSpec:
  """An encoder, and a decoder that attends to its states; they share the embedding.

  Attributes:
    encoder: of the source.
    decoder: of the target.
    start: the token before a target's first one.
  """

  encoder: Spec
  decoder: Spec
  start: int = 0

  def __post_init__(self):
    fits = 0 <= self.start < self.vocab
    checks.require(fits, "start", self.start, f"a token below {self.vocab}, the vocabulary")

  @property
  def family(self) -> str:
    return self.decoder.family

  @property
  def vocab(self) -> int:
    return self.decoder.vocab

  @property
  def tied(self) -> bool:
    return self.decoder.tied

  def room(self, new: int) -> int:
    """How many tokens a prompt may have, so that `new` more can be written."""
    return self.encoder.max_positions if new <= self.decoder.max_positions else 0

  @property
  def stacks(self) -> dict[str, Spec]:
    """Name of each stack of layers among the parameters to its spec."""
    return {"encoder": self.encoder, "decoder": self.decoder}
