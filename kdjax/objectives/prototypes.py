"""ProC-KD's bank of prototypes: what tokens have of each, and tokens enriched by the bank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._common import unit
from kdjax.objectives.networks import apply_mlp, init_mlp


def init_prototypes(rng, told: int, width: int, number: int):
  """Weights of a bank.

  Args:
    rng: a key.
    told: channels of the teacher's tokens, of all layers together.
    width: channels of the student's tokens.
    number: K, how many prototypes.

  Returns:
    A nested dict; "bank" [K, D] is uniform in [0, 1).
  """
  keys = jax.random.split(rng, 7)
  return {
    "bank": jax.random.uniform(keys[0], (number, width)),
    "in": init_mlp(keys[1], (told, width)),
    "assign": init_mlp(keys[2], (width, number)),
    "gather": init_mlp(keys[3], (number * width, width)),
    "mix": init_mlp(keys[4], (2 * width, width, width)),
    "encode": init_mlp(keys[5], (width, width)),
    "out": init_mlp(keys[6], (2 * width, width, width)),
  }


def aggregate(params, tokens: Float[Array, "batch time told"]) -> Float[Array, "batch time width"]:
  """The teacher's tokens, each beside what all of an image's have of each prototype (VLAD).

  A token of length 1 is shared out among the prototypes; what is left of it beside a prototype is
  summed over the image, brought to length 1 for each prototype and then in all.
  """
  tokens = jax.nn.relu(apply_mlp(params["in"], tokens))
  short, bank = unit(tokens), params["bank"]
  share = jax.nn.softmax(apply_mlp(params["assign"], short))
  left = jnp.einsum("btk,btd->bkd", share, short) - share.sum(1)[..., None] * bank[None]
  whole = unit(unit(left).reshape(left.shape[0], -1))
  whole = jnp.broadcast_to(apply_mlp(params["gather"], whole)[:, None], tokens.shape)
  both = jnp.concatenate([tokens, whole], axis=-1)
  return jax.nn.relu(apply_mlp(params["mix"], both, activation=jax.nn.relu))


def augment(params, tokens: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
  """Tokens, each with the prototypes that it attends to; the output is not negative."""
  tokens = tokens.astype(jnp.float32)
  own, bank = apply_mlp(params["encode"], tokens), apply_mlp(params["encode"], params["bank"])
  found = jax.nn.softmax(jnp.einsum("btd,kd->btk", own, bank)) @ bank
  both = jnp.concatenate([own, found], axis=-1)
  more = jax.nn.relu(apply_mlp(params["out"], both, activation=jax.nn.relu))
  return jax.nn.relu(more + tokens)
