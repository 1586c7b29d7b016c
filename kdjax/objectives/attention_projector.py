"""ScaleKD's projector: a grid of queries looks at a student's map and gives one of other size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.objectives.networks import (
  apply_conv,
  apply_mlp,
  batch_norm,
  init_conv,
  init_mlp,
  init_norm,
  normalize,
)


def init_projector(
  rng, own: tuple[int, int, int], wanted: tuple[int, int, int], query_width: int | None
):
  """Weights of a projector.

  Args:
    rng: a key.
    own: (height, width, channels) of the student's map.
    wanted: the same of what is made.
    query_width: channels of the queries that will be given; None learns a grid of them.

  Returns:
    A nested dict.
  """
  keys = jax.random.split(rng, 9)
  (_, _, narrow), (height, columns, wide) = own, wanted
  place = 0.02 * jax.random.truncated_normal(keys[1], -2 / 0.02, 2 / 0.02, own)
  params = {
    "student": init_conv(keys[0], (3, 3), narrow, narrow, bias=True),
    "student_norm": init_norm(narrow),
    "place": place,
    "grid": init_mlp(keys[2], (query_width or wide, wide)),
    "query": init_mlp(keys[3], (wide, wide)),
    "key": init_mlp(keys[4], (narrow, wide)),
    "value": init_mlp(keys[5], (narrow, wide)),
    "out": init_mlp(keys[6], (wide, wide)),
    "norm": init_norm(wide),
    "mlp": init_mlp(keys[7], (wide, 4 * wide, wide)),
  }
  if query_width is None:
    params["queries"] = jax.random.normal(keys[8], (height, columns, wide))
  return params


def project(
  params,
  x: Float[Array, "batch height width channel"],
  where: Bool[Array, "batch"],
  *,
  heads: int,
  scale: float,
  query: Float[Array, "batch new_height new_width query_width"] | None = None,
) -> Float[Array, "batch new_height new_width new_channel"]:
  """A student's map as the teacher would have it.

  A 3x3 convolution with norm and ReLU, a learned vector for each place; the queries through a
  linear layer with ReLU; attention of the queries to the places; norm; an MLP beside the norm's
  output.

  Args:
    params: from `init_projector`.
    x: the student's map.
    where: examples that count for the norm's statistics.
    heads: of attention; divides the new channels.
    scale: attention scores are multiplied by it, beside the usual root of the width.
    query: given in place of learned queries.

  Returns:
    float32, on the grid of the queries.
  """
  x = apply_conv(params["student"], x, padding=1)
  x = jax.nn.relu(batch_norm(params["student_norm"], x, where)) + params["place"][None]
  if query is None:
    queries = params["queries"]
    query = jnp.broadcast_to(queries[None], (x.shape[0], *queries.shape))
  grid = query.shape[1:3]
  query = jax.nn.relu(apply_mlp(params["grid"], query))

  def split(name: str, y: Array) -> Array:  # [B, T, H, K]
    y = apply_mlp(params[name], y)
    return y.reshape(y.shape[0], -1, heads, y.shape[-1] // heads)

  queries, keys, values = split("query", query), split("key", x), split("value", x)
  scores = jnp.einsum("bnhk,bmhk->bhnm", queries, keys) * (scale * queries.shape[-1] ** -0.5)
  found = jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores), values)
  found = apply_mlp(params["out"], found.reshape(x.shape[0], *grid, -1))
  normed = normalize(found)
  normed = normed * _wide(params["norm"]["scale"], normed) + _wide(params["norm"]["bias"], normed)
  return normed + apply_mlp(params["mlp"], normed, activation=jax.nn.relu)


def _wide(weights: Float[Array, "channel"], x: Array) -> Array:
  return jnp.broadcast_to(weights, x.shape)
