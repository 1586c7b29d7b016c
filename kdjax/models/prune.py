"""Transformers made smaller by leaving out layers, heads, neurons and residual channels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.importance import Importance
from kdjax.models.transformer import Spec, language_model

PyTree = Any


class Selection(NamedTuple):
  """What is kept of a model: indices into the larger one, int32, ascending.

  Attributes:
    layers: [L].
    kv_heads: [L, G].
    heads: [L, H], as many of each kept key and value head, in their order.
    neurons: [L, M].
    channels: [D], the same in all layers.
  """

  layers: Int[Array, "layer"]
  kv_heads: Int[Array, "layer kv_head"]
  heads: Int[Array, "layer head"]
  neurons: Int[Array, "layer neuron"]
  channels: Int[Array, "width"]


def keep_layers(spec: Spec, kept: Sequence[int]) -> Spec:
  """The spec of a model of these layers, each of the kind (local or not) that it was."""
  local = tuple(spec.local[i] for i in kept) if spec.local else ()
  return spec.replace(depth=len(kept), local=local)


def narrow(
  spec: Spec,
  *,
  width: int | None = None,
  heads: int | None = None,
  kv_heads: int | None = None,
  mlp_width: int | None = None,
) -> Spec:
  """The spec of a model with fewer channels, heads or neurons; None keeps what there is.

  The size of a head and the scale of its scores stay.

  Args:
    spec: of the larger model.
    width: channels of the residual stream.
    heads: query heads; as many of each kept key and value head.
    kv_heads: key and value heads. Alone it keeps the query heads of each; `heads` alone keeps all
      key and value heads, if there are fewer of them than query heads.
    mlp_width: neurons of each MLP.

  Returns:
    The spec.

  Raises:
    KdjaxError: a size that is larger than the model's, or heads that do not divide.
  """
  group = spec.heads // spec.kv_heads
  if kv_heads is None:
    kv_heads = heads if heads is not None and group == 1 else spec.kv_heads
  sizes = {
    "width": spec.width if width is None else width,
    "heads": kv_heads * group if heads is None else heads,
    "kv_heads": kv_heads,
    "mlp_width": spec.mlp_width if mlp_width is None else mlp_width,
  }
  checks.positive(**sizes)
  for name, size in sizes.items():
    if size > (whole := getattr(spec, name)):
      raise KdjaxError(f"{name} = {size}: wanted 1 to {whole}, which the larger model has")
  if sizes["heads"] % kv_heads or sizes["heads"] // kv_heads > group:
    raise KdjaxError(
      f"heads = {sizes['heads']} with kv_heads = {kv_heads}: wanted a multiple of kv_heads, at most"
      f" {group} query heads for each, as the larger model has"
    )
  # Gemma multiplies embeddings by the root of the width: `prune` makes up for the change.
  scale = spec.embed_scale if spec.embed_scale == 1.0 else sizes["width"] ** 0.5
  return spec.replace(**sizes, embed_scale=scale)


def select(
  found: Importance, spec: Spec, child: Spec, *, layers: Sequence[int] | None = None
) -> Selection:
  """The parts that matter most.

  Of key and value heads, those whose query heads together have the greatest length; of each, its
  query heads of greatest length.

  Args:
    found: of the larger model.
    spec: of the larger model.
    child: of the smaller one.
    layers: which layers to keep; the most important ones where None.

  Returns:
    The indices. The function may be traced; specs are static.
  """
  kept = _top(found.layers, child.depth) if layers is None else jnp.asarray(layers, jnp.int32)
  group, own = spec.heads // spec.kv_heads, child.heads // child.kv_heads
  heads = found.heads[kept].reshape(child.depth, spec.kv_heads, group)
  kv_heads = _top(jnp.square(heads).sum(-1), child.kv_heads)
  within = _top(jnp.take_along_axis(heads, kv_heads[..., None], axis=1), own)
  return Selection(
    layers=kept,
    kv_heads=kv_heads,
    heads=(kv_heads[..., None] * group + within).reshape(child.depth, -1),
    neurons=_top(found.neurons[kept], child.mlp_width),
    channels=_top(found.channels, child.width),
  )


def _top(scores: Array, count: int) -> Array:
  return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1)


def prune(params: PyTree, spec: Spec, child: Spec, selection: Selection) -> PyTree:
  """The parameters of the smaller model: slices of the larger one's.

  A norm divides by the root mean square of fewer channels, which is larger than before where the
  others were small, as the least important ones are. Its scale is multiplied by the root of the
  larger width over the smaller one, which counts the channels left out as zeros: leaving out zeros
  then changes nothing (of an RMS norm). Minitron leaves the scale as it is: SmolLM2-135M of 432 of
  its 576 channels then has a perplexity of 161 on Python's library, so 60 (and all of it 5.9).

  Args:
    params: of the larger model, arrays; [L, ...] those of layers.
    spec: of the larger model.
    child: of the smaller one, from `narrow` and `keep_layers`.
    selection: what to keep; of the sizes that `child` has.

  Returns:
    The parameters. The function may be traced; specs are static.

  Raises:
    KdjaxError: a selection of other sizes than the child's.
  """
  _check(selection, child)
  model = language_model(child)
  shapes = jax.eval_shape(model.init, jax.random.key(0)).params
  kept = {"heads": selection.heads, "kv_heads": selection.kv_heads, "mlp": selection.neurons}
  ratio = spec.width / child.width

  def one(path, leaf, shape, names):
    layered = tuple(names)[:1] == ("layers",)
    leaf = jnp.take(leaf, selection.layers, axis=0) if layered else leaf
    for axis, (after, name) in enumerate(zip(shape.shape, names, strict=True)):
      if leaf.shape[axis] == after:
        continue
      # Axes that are neither heads nor neurons are channels, whatever they are called.
      indices = kept.get(name, selection.channels)
      each = indices.ndim == 2  # every layer has indices of its own
      take = functools.partial(jnp.take, axis=axis - each)
      leaf = (jax.vmap(take) if each else take)(leaf, indices)
      if name == "norm" and path[-1].key == "scale":
        leaf = leaf * jnp.asarray(ratio**0.5, leaf.dtype)
    return leaf

  out = jax.tree_util.tree_map_with_path(one, params, shapes, model.axes().params)
  return _rescaled(out, spec, child) if spec.embed_scale != child.embed_scale else out


def _rescaled(params: PyTree, spec: Spec, child: Spec) -> PyTree:
  """The table grows by what its factor lost; where it is the head too, the last norm shrinks."""
  lost = spec.embed_scale / child.embed_scale
  embed, stack = dict(params["embed"]), dict(params["stack"])
  embed["tokens"] = embed["tokens"] * jnp.asarray(lost, embed["tokens"].dtype)
  if child.tied:
    scale = stack["norm"]["scale"]
    stack["norm"] = stack["norm"] | {"scale": scale / jnp.asarray(lost, scale.dtype)}
  return params | {"embed": embed, "stack": stack}


def _check(selection: Selection, child: Spec) -> None:
  depth = child.depth
  wanted = Selection(
    layers=(depth,),
    kv_heads=(depth, child.kv_heads),
    heads=(depth, child.heads),
    neurons=(depth, child.mlp_width),
    channels=(child.width,),
  )
  for name, indices, shape in zip(Selection._fields, selection, wanted, strict=True):
    if jnp.shape(indices) != shape:
      raise KdjaxError(
        f"selection.{name} has shape {jnp.shape(indices)}; the smaller model wants {shape}"
      )
