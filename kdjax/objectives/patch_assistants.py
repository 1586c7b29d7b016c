"""What TransKD-GL and TransKD-EA put between a student's embedded patches and its teacher's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from kdjax.objectives.networks import apply_conv, apply_mlp, init_conv, init_mlp, init_norm

Patches = Float[Array, "batch height width channel"]


def init_mixer(rng: Key[Array, ""], width: int) -> dict:
  """Weights of `mix`; both of its shares begin at 1 (the official ones are not initialised)."""
  keys = jax.random.split(rng, 4)
  return {
    "qkv": init_mlp(keys[0], (width, 3 * width), bias=False),
    "out": init_mlp(keys[1], (width, width)),
    "value": init_conv(keys[2], (3, 1), width, width, bias=True),
    "gate": init_conv(keys[3], (3, 1), width, width, bias=True),
    "shares": jnp.ones(2),
  }


def mix(params: dict, patches: Patches, heads: int) -> Patches:
  """Global and local: shares of self-attention and of a gated convolution along the patches.

  Args:
    params: from `init_mixer`.
    patches: read row by row.
    heads: of the attention; they divide the channels.

  Reference:
    RuipingL/TransKD, train/CSF_GLMixer.py.
  """
  tokens = patches.reshape(len(patches), -1, patches.shape[-1])
  split = apply_mlp(params["qkv"], tokens).reshape(*tokens.shape[:2], 3, heads, -1)
  attended = jax.nn.dot_product_attention(*(split[:, :, i] for i in range(3)))
  attended = apply_mlp(params["out"], attended.reshape(tokens.shape))
  padded = jnp.pad(tokens, ((0, 0), (1, 1), (0, 0)))[:, :, None]
  value, gate = (apply_conv(params[name], padded)[:, :, 0] for name in ("value", "gate"))
  far, near = params["shares"]
  return (far * attended + near * value * jax.nn.sigmoid(gate)).reshape(patches.shape)


def init_assistant(rng: Key[Array, ""], width_in: int, width: int, stride: int, share: float):
  """Weights of `assist`, whose share begins as given."""
  size = 2 * stride - 1
  return {
    "conv": init_conv(rng, (size, size), width_in, width, bias=True),
    "norm": init_norm(width),
    "share": jnp.float32(share),
  }


def assist(
  params: dict, before: Float[Array, "batch height2 width2 channel2"], stride: int
) -> Patches:
  """Patches that overlap, embedded at the teacher's width from the map before, times their share.

  Args:
    params: from `init_assistant`.
    before: the image or the stage that the student's own patches are made of.
    stride: between patches, which are 2 stride - 1 wide.

  Reference:
    RuipingL/TransKD, train/CSF_EA.py.
  """
  made = apply_conv(params["conv"], before, stride=stride, padding=stride - 1)
  made = jax.nn.standardize(made, axis=-1, epsilon=1e-5)
  scale, bias = (jnp.broadcast_to(params["norm"][name], made.shape) for name in ("scale", "bias"))
  return params["share"] * (made * scale + bias)
