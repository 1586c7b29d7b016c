"""A vision transformer whose blocks are stacked and run by scan."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import (
  REMAT,
  Depth,
  check_segment,
  dropout_rngs,
  layer_norm,
  linear,
  named,
  read_out,
  read_out_both,
  scan_layers,
  stacked,
)
from kdjax.models.transformer.attention import cudnn_can
from kdjax.outputs import Outputs

_LAYER_TAPS = frozenset({"hidden_states", "queries", "keys", "values", "attention"})
_TAPS = _LAYER_TAPS | {"logits", "hidden", "head", "embedding", "segment"}
POOLS = ("mean", "cls", "distilled")

# Its derivative is rebuilt from its input, which keeps one wide array in place of several. A scan
# writes to memory what it keeps, so that on CPU this halves the time of a training step.
_ACTIVATIONS = {
  name: jax.checkpoint(function, prevent_cse=False)
  for name, function in {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  }.items()
}


@dataclasses.dataclass(frozen=True)
class ViTSpec:
  """Sizes and kind of a vision transformer.

  Attributes:
    image: height and width of the images.
    channels: of the images.
    num_classes: size of the logits.
    patch: side of a patch in pixels.
    width: of the residual stream.
    depth: number of blocks.
    heads: of attention.
    mlp_width: hidden width of the MLPs.
    pool: see `vit`.
    second_head: whether the distillation token has a head of its own.
    activation: "gelu", "gelu_tanh" (its approximation) or "quick_gelu".
    eps: of the norms.
    qkv_bias: whether queries, keys and values have biases.
    patch_bias: whether the patches' embedding has one.
    embed_norm: a norm before the first block, as CLIP has it.
    head_bias: whether the head has one.
    prompts: learned tokens behind the patches, the same for all images.
    prompt_depth: how many blocks have prompts of their own; see `vit`.
    family: for conversion.
  """

  image: tuple[int, int]
  channels: int
  num_classes: int
  patch: int
  width: int
  depth: int
  heads: int
  mlp_width: int
  pool: str = "mean"
  second_head: bool = False
  activation: str = "gelu_tanh"
  eps: float = 1e-6
  qkv_bias: bool = True
  patch_bias: bool = True
  embed_norm: bool = False
  head_bias: bool = True
  prompts: int = 0
  prompt_depth: int = 1
  family: str = "vit"

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {"blocks": Depth(self.depth)}

  @property
  def tokens(self) -> int:
    """Learned tokens before the patches."""
    return POOLS.index(self.pool)


def _attend(query, key, value) -> tuple[Array, Float[Array, "batch head time time"]]:
  """Attention with its probabilities in sight; the same function as the fused one."""
  scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
  probs = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
  return jnp.einsum("bhts,bshk->bthk", probs.astype(value.dtype), value), probs


def _normed(norm: nnx.LayerNorm, hidden: Array) -> Array:
  return norm(hidden.astype(jnp.float32)).astype(hidden.dtype)


class _Block(nnx.Module):
  """Pre-norm transformer block."""

  def __init__(self, spec: ViTSpec, *, dropout: float, dtype, rngs):
    width, heads, mlp_width = spec.width, spec.heads, spec.mlp_width
    general = functools.partial(nnx.LinearGeneral, dtype=dtype, rngs=rngs)
    split = (heads, width // heads)

    def project(heads_name: str) -> nnx.LinearGeneral:
      return general(
        width,
        split,
        use_bias=spec.qkv_bias,
        kernel_metadata=named("embed", heads_name, "head_dim"),
        bias_metadata=named(heads_name, "head_dim"),
      )

    self.norm_attention = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    self.query = project("heads")
    self.key = project("kv_heads")
    self.value = project("kv_heads")
    self.out = general(
      split,
      width,
      axis=(-2, -1),
      kernel_metadata=named("heads", "head_dim", "embed"),
      bias_metadata=named("embed"),
    )
    self.norm_mlp = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    self.up = linear(width, mlp_width, ("embed", "mlp"), rngs=rngs, dtype=dtype)
    self.down = linear(mlp_width, width, ("mlp", "embed"), rngs=rngs, dtype=dtype)
    self.dropout = nnx.Dropout(dropout)
    self.activation = spec.activation

  def __call__(
    self, hidden: Float[Array, "batch time width"], key: Array | None, taps: frozenset[str]
  ) -> tuple[Array, dict[str, Array]]:
    rngs = None if key is None else nnx.Rngs(key)
    drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)

    normed = _normed(self.norm_attention, hidden)
    queries = checkpoint_name(self.query(normed), "queries")
    keys = checkpoint_name(self.key(normed), "keys")
    values = checkpoint_name(self.value(normed), "values")
    probs = None
    if "attention" in taps:
      attended, probs = _attend(queries, keys, values)
    else:
      # It promotes bfloat16 scores to float32 inside, which strict promotion would refuse.
      with jax.numpy_dtype_promotion("standard"):
        by = "cudnn" if cudnn_can(queries) else "xla"
        attended = jax.nn.dot_product_attention(queries, keys, values, implementation=by)
    hidden = hidden + drop(self.out(checkpoint_name(attended, "attended")))
    hidden = checkpoint_name(hidden, "between")
    wide = _ACTIVATIONS[self.activation](self.up(_normed(self.norm_mlp, hidden)))
    hidden = hidden + drop(self.down(wide))

    given = {
      "hidden_states": hidden,
      "queries": queries,
      "keys": keys,
      "values": values,
      "attention": probs,
    }
    return hidden, {tap: given[tap] for tap in taps & _LAYER_TAPS}


class _ViT(nnx.Module):
  def __init__(self, spec: ViTSpec, *, dropout: float, remat: str, dtype, rngs: nnx.Rngs):
    patch, width = spec.patch, spec.width
    self.embed = linear(
      patch * patch * spec.channels,
      width,
      (None, "embed"),
      rngs=rngs,
      dtype=dtype,
      use_bias=spec.patch_bias,
    )
    if spec.tokens:
      self.class_token = nnx.Param(jnp.zeros((1, width)), **named(None, "embed"))
    if spec.tokens == 2:
      self.distillation_token = nnx.Param(jnp.zeros((1, width)), **named(None, "embed"))
    rows, columns = spec.image
    tokens = (rows // patch) * (columns // patch) + spec.tokens
    position = 0.02 * jax.random.normal(rngs.params(), (tokens, width))
    self.position = nnx.Param(position, **named(None, "embed"))
    if spec.embed_norm:
      self.embed_norm = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    if spec.prompts:
      prompts = 0.02 * jax.random.normal(rngs.params(), (spec.prompt_depth, spec.prompts, width))
      self.prompts = nnx.Param(prompts, **named(None, None, "embed"))
    self.blocks = stacked(
      lambda rngs: _Block(spec, dropout=dropout, dtype=dtype, rngs=rngs), spec.depth, rngs
    )
    self.norm = layer_norm(width, rngs=rngs, epsilon=spec.eps)
    self.head = linear(
      width, spec.num_classes, ("embed", "vocab"), rngs=rngs, use_bias=spec.head_bias
    )
    if spec.second_head:
      self.distillation_head = linear(width, spec.num_classes, ("embed", "vocab"), rngs=rngs)
    self.spec = spec
    self.dropout = dropout
    self.remat = remat
    self.dtype = dtype

  def _tokens(self, image: Float[Array, "batch height width channel"]) -> Array:
    """Cuts patches by reshape and embeds them by matmul, which maps cheaply over seeds."""
    batch, height, width, channels = image.shape
    p = self.spec.patch
    image = image.reshape(batch, height // p, p, width // p, p, channels)
    patches = image.swapaxes(2, 3).reshape(batch, -1, p * p * channels)
    tokens = self.embed(patches.astype(self.dtype))
    names = ("class_token", "distillation_token")[: self.spec.tokens]
    if names:
      first = jnp.concatenate([getattr(self, name)[...] for name in names])
      first = jnp.broadcast_to(first[None], (batch, *first.shape))
      tokens = jnp.concatenate([first.astype(self.dtype), tokens], axis=1)
    tokens = tokens + self.position[...].astype(self.dtype)[None]
    if self.spec.prompts:
      first = self.prompts[...][:1].astype(self.dtype)
      first = jnp.broadcast_to(first, (batch, *first.shape[1:]))
      tokens = jnp.concatenate([tokens, first], axis=1)
    return _normed(self.embed_norm, tokens) if self.spec.embed_norm else tokens

  def _fresh(self, start: int, stop: int | None):
    """For blocks start..stop-1: (their prompts, whether they have any); None where none has."""
    depth, own = self.spec.depth, self.spec.prompt_depth
    if not self.spec.prompts or own == 1:
      return None
    prompts = jnp.pad(self.prompts[...], ((0, depth - own), (0, 0), (0, 0)))
    place = jnp.arange(depth)
    return prompts.astype(self.dtype)[start:stop], ((place > 0) & (place < own))[start:stop]

  def _run(self, hidden: Array, rngs=None, taps=frozenset(), start=0, stop=None):
    keys = None if rngs is None else jax.random.split(rngs.dropout(), self.spec.depth)[start:stop]

    def call(block: _Block, hidden: Array, x):
      key, fresh = x
      if fresh is not None:  # in place of what became of the prompts of the block before
        prompts, has_any = fresh
        last = hidden[:, -self.spec.prompts :]
        last = jnp.where(has_any, jnp.broadcast_to(prompts[None], last.shape), last)
        hidden = jnp.concatenate([hidden[:, : -self.spec.prompts], last], axis=1)
      return block(hidden, key, taps)

    return scan_layers(
      self.blocks,
      call,
      hidden,
      (keys, self._fresh(start, stop)),
      start=start,
      stop=stop,
      remat=REMAT[self.remat],
    )

  def segment(self, hidden: Array, start: int, stop: int, *inputs: Array) -> Array:
    check_segment(start, stop, self.spec.depth)
    return self._run(hidden.astype(self.dtype), start=start, stop=stop)[0]

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.dropout, train, rngs)
    hidden, collected = self._run(self._tokens(image), rngs, taps)
    hidden = self.norm(hidden.astype(jnp.float32))
    if self.spec.second_head:
      out = read_out_both((self.head, self.distillation_head), hidden[:, 0], hidden[:, 1], taps)
    else:
      patches = hidden[:, : hidden.shape[1] - self.spec.prompts]
      pooled = hidden[:, 0] if self.spec.tokens else patches.mean(1)
      out = read_out(self.head, pooled, taps)
    return dataclasses.replace(out, **collected)


def vit(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  patch: int = 2,
  width: int = 64,
  depth: int = 4,
  heads: int = 4,
  mlp_ratio: int = 4,
  dropout: float = 0.0,
  pool: str = "mean",
  prompts: int = 0,
  prompt_depth: int = 1,
  remat: str = "none",
  dtype: str = "float32",
) -> Model:
  """A vision transformer: patches, learned positions, pre-norm blocks, norm, pool, head.

  Block i (from 0) reads hidden state i - 1 and gives hidden state i; block 0 reads the embedded
  patches. So `segment(hidden_states[a], a + 1, b + 1)` is `hidden_states[b]` without dropout, and
  `start` and `stop` are static. Weights of the blocks have a leading axis "layers" and run in one
  scan: neither compile time nor program size grows with depth.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    patch: side of a square patch in pixels; divides height and width.
    width: D, size of the residual stream.
    depth: number of blocks.
    heads: attention heads; divides width.
    mlp_ratio: hidden width of the MLP over D.
    dropout: rate in [0, 1) on both branches of a block, when training.
    pool: what the head reads: "mean" over patches; "cls", a learned first token; or "distilled",
      DeiT's two first tokens, each with a head of its own, of which `logits` is the mean. The
      second is to learn from the teacher (see `kdjax.objectives.distillation_token`).
    prompts: learned tokens behind the patches (visual prompt tuning); T counts them, and no head
      reads them.
    prompt_depth: the first blocks, so many of them, begin with prompts of their own; those after
      go on with what became of the last.
    remat: what the backward pass recomputes instead of keeping: "none"; "mlp", attention
      probabilities and the inside of the MLP; "full", the whole block.
    dtype: compute dtype of the blocks, "float32" or "bfloat16". Parameters, the final norm, the
      head and the logits are float32.

  Returns:
    A model with the taps logits, hidden, head, hidden_states, queries, keys, values, attention,
    embedding (pooled, the same as hidden) and segment; with two tokens distillation_logits too. T
    is the number of patches and tokens. Asking for attention computes the probabilities
    explicitly.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> model = vit(num_classes=10, image_shape=(8, 8, 1), width=16, depth=2)
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"hidden_states"})
    >>> out, _ = model.apply(variables, {"image": jnp.zeros((2, 8, 8, 1))}, taps=taps)
    >>> out.hidden_states.shape
    (2, 2, 16, 16)

  Reference:
    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
    Scale", ICLR 2021, https://arxiv.org/abs/2010.11929; for "distilled", Touvron et al., "Training
    data-efficient image transformers & distillation through attention", ICML 2021,
    https://arxiv.org/abs/2012.12877; for prompts, Jia et al., "Visual Prompt Tuning", ECCV 2022,
    https://arxiv.org/abs/2203.12119
  """
  checks.channels(image_shape)
  checks.positive(
    num_classes=num_classes, patch=patch, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio
  )
  rows, columns, channels = image_shape
  fits = rows % patch == 0 and columns % patch == 0
  checks.require(fits, "patch", patch, f"a divisor of the image's sides, {rows} and {columns}")
  checks.require(width % heads == 0, "heads", heads, f"a divisor of width, {width}")
  checks.one_of("pool", pool, POOLS)
  check_prompts(prompts, prompt_depth, depth)
  spec = ViTSpec(
    image=(rows, columns),
    channels=channels,
    num_classes=num_classes,
    patch=patch,
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=mlp_ratio * width,
    pool=pool,
    second_head=pool == "distilled",
    prompts=prompts,
    prompt_depth=prompt_depth,
    family="deit" if pool == "distilled" else "vit",
  )
  return vit_model(spec, dropout=dropout, remat=remat, dtype=dtype)


def check_prompts(prompts: int, prompt_depth: int, depth: int) -> None:
  """Raises KdjaxError for learned tokens that the model cannot have."""
  fits = isinstance(prompts, int) and prompts >= 0
  checks.require(fits, "prompts", prompts, "an integer >= 0")
  fits = isinstance(prompt_depth, int) and 1 <= prompt_depth <= depth
  checks.require(fits, "prompt_depth", prompt_depth, f"1 to depth, {depth}")


def vit_model(
  spec: ViTSpec, *, dropout: float = 0.0, remat: str = "none", dtype: str = "float32"
) -> Model:
  """The model of a spec; see `vit` for the rest."""
  checks.dropout_rate(dropout)
  checks.one_of("remat", remat, REMAT)
  compute_dtype = checks.compute_dtype(dtype)

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _ViT(spec, dropout=dropout, remat=remat, dtype=compute_dtype, rngs=rngs)

  return functional(
    build,
    inputs=checks.image_input((*spec.image, spec.channels)),
    taps=_TAPS | ({"distillation_logits"} if spec.second_head else frozenset()),
    num_classes=spec.num_classes,
    spec=spec,
  )
