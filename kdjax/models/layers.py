"""Pieces shared by the models: named weights, stacked layers run by scan, the classifier's end."""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.models.expressions import resolve
from kdjax.outputs import Head, Outputs

BATCH_AXES = ("data", "fsdp")  # of a mesh: those that split the rows of a batch
SEQUENCE_AXIS = "sequence"  # that splits the places of a row
_ROWS = contextvars.ContextVar("rows", default=BATCH_AXES)
Names = tuple[str | None, ...]

# What the backward pass keeps of a layer besides its input. "mlp" keeps the tagged arrays, each as
# wide as the residual stream, and recomputes the wide ones: attention and the inside of the MLP.
REMAT = {
  "none": None,
  "full": functools.partial(jax.checkpoint, prevent_cse=False),
  "mlp": functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(
      "queries", "keys", "values", "attended", "between"
    ),
  ),
}


def named(*names: str | None) -> dict[str, Names]:
  """Metadata that gives a weight its logical axis names, one per dimension."""
  return {"out_sharding": names}


def linear(
  in_size: int,
  out_size: int,
  names: Names,
  *,
  rngs: nnx.Rngs,
  dtype: Any = jnp.float32,
  **options: Any,
) -> nnx.Linear:
  """A dense layer with float32 weights; `names` are those of its kernel."""
  return nnx.Linear(
    in_size,
    out_size,
    dtype=dtype,
    **options,
    kernel_metadata=named(*names),
    bias_metadata=named(names[-1]),
    rngs=rngs,
  )


def layer_norm(size: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6) -> nnx.LayerNorm:
  """Layer norm in float32; the caller casts what goes in and comes out."""
  return nnx.LayerNorm(
    size,
    epsilon=epsilon,
    scale_metadata=named("norm"),
    bias_metadata=named("norm"),
    rngs=rngs,
  )


class Depth(NamedTuple):
  """How many layers a stack of a checkpoint has; what `spec.stacks` maps its name to."""

  depth: int


class Depthwise(nnx.Module):
  """A square convolution of each channel by itself, with a bias; height and width stay.

  A sum of shifted copies rather than XLA's grouped convolution: on a mesh that splits channels the
  partitioner returned doubled gradients of its kernel, without a warning, and inside a scan it was
  sixteen times slower on CPU. Outside both are equally fast there.
  """

  def __init__(self, width: int, size: int, *, stride: int = 1, use_bias: bool = True, dtype, rngs):
    kernel = jax.random.truncated_normal(rngs.params(), -2, 2, (size, size, width))
    self.kernel = nnx.Param(kernel / size, **named(None, None, "embed"))
    self.bias = nnx.Param(jnp.zeros((width,)), **named("embed")) if use_bias else None
    self.size, self.stride, self.dtype = size, stride, dtype

  def __call__(self, x: Float[Array, "batch height width channel"]) -> Array:
    before, step = (self.size - 1) // 2, self.stride
    after = self.size - 1 - before
    height, width = x.shape[1:3]
    kernel = self.kernel[...].astype(self.dtype)
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    out = sum(
      x[:, i : i + height : step, j : j + width : step] * kernel[i, j][None, None, None]
      for i in range(self.size)
      for j in range(self.size)
    )
    return out if self.bias is None else out + self.bias[...].astype(self.dtype)[None, None, None]


def keep_branch(
  branch: Float[Array, "batch *dims"], rate: float | Array, rngs: nnx.Rngs | None
) -> Float[Array, "batch *dims"]:
  """Stochastic depth: leaves a residual branch out of some examples, whole; none without `rngs`.

  What stays is divided by the share that stays (Huang et al., https://arxiv.org/abs/1603.09382).
  """
  if rngs is None:
    return branch
  shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
  kept = jax.random.bernoulli(rngs.dropout(), 1 - rate, shape)
  return jnp.where(kept, branch / jnp.asarray(1 - rate, branch.dtype), 0)


def dropout_rngs(rate: float, train: bool, rngs: nnx.Rngs | None) -> nnx.Rngs | None:
  """The source of dropout masks, or None where nothing is dropped."""
  if not train or rate == 0:
    return None
  if rngs is None:
    raise KdjaxError(
      f"apply(train=True) of a model with dropout={rate} wants rng=, a key; got None"
    )
  return rngs


def stacked(build: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
  """`depth` equal layers as one module whose arrays have a leading axis named "layers"."""
  create = nnx.vmap(build, axis_size=depth, transform_metadata={nnx.PARTITION_NAME: "layers"})
  return nnx.split_rngs(splits=depth)(create)(rngs)


def scan_layers(
  layers: nnx.Module,
  call: Callable[[nnx.Module, Any, Any], tuple[Any, Any]],
  carry: Any,
  xs: Any = None,
  *,
  start: int = 0,
  stop: int | None = None,
  remat: Callable[[Callable], Callable] | None = None,
) -> tuple[Any, Any]:
  """Runs stacked layers start..stop-1 as one `lax.scan`, so that depth costs no compile time.

  State that a layer changes (batch statistics) is written back to `layers`.

  Args:
    layers: made by `stacked`.
    call: `call(layer, carry, x) -> (carry, collected)`.
    carry: what the first layer reads.
    xs: pytree of arrays with a leading layer axis, one slice for each layer that runs.
    start: static; the first layer that runs.
    stop: static; the layer to stop before. The default is the depth.
    remat: wraps the scan's body, for example in `jax.checkpoint`.

  Returns:
    The last carry, and what was collected with a leading layer axis.
  """
  graphdef, params, state = nnx.split(layers, nnx.Param, ...)
  params, state = jax.tree.map(lambda a: a[start:stop], (params, state))

  def body(carry, layer):
    params, state, x = layer
    module = nnx.merge(graphdef, resolve(params), state)
    carry, collected = call(module, rows_apart(carry), x)
    return rows_apart(carry), (collected, nnx.split(module, nnx.Param, ...)[2])

  carry, (collected, state) = jax.lax.scan(
    remat(body) if remat else body, carry, (params, state, xs)
  )
  nnx.update(layers, state)
  return carry, collected


def rows_apart(hidden: Any) -> Any:
  """Activations with rows and places split as those of a batch, on the mesh that is traced for.

  Weights that are split along the same axis are then gathered, layer by layer. Without this word
  XLA may as well leave the weights where they are, give each device the rows of all, and add up
  activations, which is slower and needs more memory (ZeRO-3 is what the layout is for). Rows that
  do not divide, as of a text that is written, are left to it.
  """
  axes, ways = row_axes()
  parts = sequence_parts()

  def one(array: Array) -> Array:
    if array.ndim < 2 or array.shape[0] % ways:
      return array
    along = array.ndim == 3 and parts > 1 and array.shape[1] % parts == 0
    if ways == 1 and not along:
      return array
    spec = (axes or None, SEQUENCE_AXIS) if along else (axes,)
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))

  return jax.tree.map(one, hidden)


def row_axes() -> tuple[tuple[str, ...], int]:
  """The axes that split the rows of a batch on the mesh that is traced for, and into how many."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(axis for axis in _ROWS.get() if not mesh.empty and mesh.shape.get(axis, 1) > 1)
  return axes, math.prod(mesh.shape[axis] for axis in axes)


def over_rows(axes: tuple[str, ...], function: Callable) -> Callable:
  """The function, traced with its rows split along these axes instead of those of a batch."""

  @functools.wraps(function)
  def traced(*args, **kwargs):
    token = _ROWS.set(axes)
    try:
      return function(*args, **kwargs)
    finally:
      _ROWS.reset(token)

  return traced


def sequence_parts() -> int:
  """Into how many parts the mesh that is traced for splits the places of a row."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape.get(SEQUENCE_AXIS, 1)


def check_segment(start: int, stop: int, depth: int) -> None:
  if not 0 <= start <= stop <= depth:
    raise KdjaxError(
      f"segment(hidden, start={start}, stop={stop}): wanted 0 <= start <= stop <= {depth}, "
      "the number of layers"
    )


class MapNorm(nnx.Module):
  """Batch normalisation in float32 of maps of any dtype."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    metadata = {"scale_metadata": named("norm"), "bias_metadata": named("norm")}
    self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs, **metadata)

  def __call__(self, hidden: Array, train: bool) -> Array:
    normed = self.norm(hidden.astype(jnp.float32), use_running_average=not train)
    return normed.astype(hidden.dtype)


def read_out(
  head: nnx.Linear, hidden: Float[Array, "batch width"], taps: frozenset[str]
) -> Outputs:
  """The end of a classifier: the fields that follow from what the head reads.

  The head computes in float32, so that `hidden @ kernel + bias` is `logits` in every compute dtype.
  """
  hidden = hidden.astype(jnp.float32)
  return Outputs(
    logits=head(hidden) if "logits" in taps else None,
    hidden=hidden if "hidden" in taps else None,
    head=Head(head.kernel[...], None if head.bias is None else head.bias[...])
    if "head" in taps
    else None,
    embedding=hidden if "embedding" in taps else None,
  )


def read_out_both(
  heads: tuple[nnx.Linear, nnx.Linear],
  first: Float[Array, "batch width"],
  second: Float[Array, "batch width"],
  taps: frozenset[str],
) -> Outputs:
  """The end of a classifier with a distillation token: the mean of two heads, one for each token.

  It is one head that reads both tokens side by side; `hidden` is [B, 2 width].
  """
  hidden = jnp.concatenate([first, second], axis=-1)
  kernel = jnp.concatenate([head.kernel[...] for head in heads]) / 2
  head = Head(kernel, sum(head.bias[...] for head in heads) / 2)
  return Outputs(
    logits=head.logits(hidden) if "logits" in taps else None,
    distillation_logits=heads[1](second) if "distillation_logits" in taps else None,
    hidden=hidden if "hidden" in taps else None,
    head=head if "head" in taps else None,
    embedding=hidden if "embedding" in taps else None,
  )
