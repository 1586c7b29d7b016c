"""How much each part of a transformer matters, by what passes through it on calibration text."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Batch
from kdjax.models.transformer.block import INNER_TAPS
from kdjax.models.transformer.language_model import LanguageModel, text_input
from kdjax.models.transformer.spec import Spec

PyTree = Any


class Importance(NamedTuple):
  """Scores, float32, at least 0 (a layer's: in [0, 2]); the greater, the more it matters.

  Attributes:
    layers: [L], 1 less the mean cosine between what a layer reads and what it gives.
    heads: [L, H], length of the mean magnitudes of what each query head reads.
    neurons: [L, M], mean magnitude of what enters the MLP's last product.
    channels: [D], mean magnitude of what attention and MLP read (norms have made it), all layers'
      together.
  """

  layers: Float[Array, "layer"]
  heads: Float[Array, "layer head"]
  neurons: Float[Array, "layer neuron"]
  channels: Float[Array, "width"]


class _Sums(NamedTuple):
  """Over rows and tokens, of which padding (segment 0) is none. Squares are of means over a row."""

  tokens: Array
  cosines: Float[Array, "layer"]
  heads: Float[Array, "layer head"]
  neurons: Float[Array, "layer neuron"]
  channels: Float[Array, "layer 2 width"]


def importance(
  spec: Spec, params: PyTree, batches: Iterable[Batch], *, dtype: str = "float32"
) -> Importance:
  """The importance of layers, heads, neurons and residual channels in one pass over some text.

  A magnitude is averaged over the tokens of a row, its squares are summed over all rows, and the
  root taken: the means over time and lengths over the batch that Minitron settles on. No layer's
  inner arrays outlive it.

  Args:
    spec: of the model.
    params: its parameters, [L, ...] those of layers.
    batches: `tokens` [B, T], `segment_ids` and `positions` as `language_model` takes them, at least
      one batch; equal shapes compile once.
    dtype: compute dtype of the pass.

  Returns:
    The scores.

  Raises:
    KdjaxError: no batch, or sequences longer than max_positions.

  Reference:
    Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    2024, https://arxiv.org/abs/2403.03853 (block influence). Muralidharan et al., "Compact Language
    Models via Pruning and Knowledge Distillation" (Minitron), NeurIPS 2024,
    https://arxiv.org/abs/2407.14679 (section 2.2); NVIDIA's Model Optimizer has its code.
  """
  compute_dtype = checks.compute_dtype(dtype)
  sums = None
  for batch in batches:
    part = _measure(spec, compute_dtype, params, dict(batch))
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
  if sums is None:
    raise KdjaxError("importance needs calibration text, at least one batch; got none")
  return Importance(
    layers=1.0 - sums.cosines / sums.tokens,
    heads=jnp.sqrt(sums.heads),
    neurons=jnp.sqrt(sums.neurons),
    channels=jnp.sqrt(sums.channels).sum((0, 1)),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(spec: Spec, dtype: Any, params: PyTree, batch: Batch) -> _Sums:
  """The sums of one batch."""
  tokens, segments, positions, types = text_input(spec)(batch)
  counted = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
  lengths = jnp.maximum(counted.sum(1), 1).astype(jnp.float32)

  def squares(x: Array) -> Array:
    """[B, T, ...] to [...]: over rows, of the mean magnitude over a row's tokens."""
    lead = (1,) * (x.ndim - 2)
    where = counted.reshape(*counted.shape, *lead)
    magnitudes = jnp.where(where, jnp.abs(x.astype(jnp.float32)), 0.0)
    return jnp.square(magnitudes.sum(1) / lengths.reshape(-1, *lead)).sum(0)

  def reduce(hidden: Array, seen: dict[str, Array]) -> _Sums:
    cosines = _cosine(hidden, seen["hidden_states"])
    return _Sums(
      tokens=counted.sum().astype(jnp.float32),
      cosines=jnp.where(counted, cosines, 0.0).sum(),
      heads=squares(seen["attended"]).sum(-1),
      neurons=squares(seen["neurons"]),
      channels=jnp.stack([squares(seen["attention_input"]), squares(seen["mlp_input"])]),
    )

  def build() -> LanguageModel:
    return LanguageModel(spec, dtype=dtype, remat="none", attention="auto", rngs=nnx.Rngs(0))

  with nnx.use_eager_sharding(False):
    graphdef, _, state = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    model = nnx.merge(graphdef, params, state)
    context, places = model.context(tokens, segments, positions)
    _, sums = model.stack.run(
      model.embed(tokens, places, types, None),
      context,
      taps=INNER_TAPS | {"hidden_states"},
      reduce=reduce,
    )
  return sums._replace(tokens=sums.tokens[0])


def _cosine(a: Float[Array, "*batch width"], b: Float[Array, "*batch width"]) -> Array:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  lengths = jnp.sqrt(jnp.square(a).sum(-1) * jnp.square(b).sum(-1))
  return (a * b).sum(-1) / jnp.maximum(lengths, 1e-12)
