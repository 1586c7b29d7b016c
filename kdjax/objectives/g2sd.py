"""G2SD: a small masked autoencoder predicts what is in the decoder of a large one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses import smooth_hint
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term, valid
from kdjax.objectives.networks import apply_mlp, init_mlp

_STATES = frozenset({"decoder_states"})
_GELU = functools.partial(jax.nn.gelu, approximate=False)


def g2sd(*, teacher_block: int = 4, masked_only: bool = False, beta: float = 2.0) -> Objective:
  """The generic stage: hidden features of the teacher's decoder, at visible and masked places.

  Student and teacher see the same patches of an image. The student's last decoder block, through a
  learned MLP, is to give the standardised output of one of the teacher's. The specific stage is
  any objective on the task, such as `distillation_token`, which the official code has.

  Args:
    teacher_block: which block of the teacher's decoder, from 1: 4 of 8 in the paper.
    masked_only: leave visible places and the class token out.
    beta: see `kdjax.losses.smooth_hint`.

  Returns:
    An objective that learns the MLP, for `masked_autoencoder` on both sides.

  Raises:
    KdjaxError: a beta out of range; when shapes are known, a block that the teacher does not have,
      or other places than the student's.

  Reference:
    Huang et al., "Generic-to-Specific Distillation of Masked Autoencoders", CVPR 2023,
    https://arxiv.org/abs/2302.14771 (pengzhiliang/G2SD, engine_distill.py; its loss on encoder
    features has the weight 0 and is left out).
  """
  if not beta > 0:
    raise KdjaxError(f"g2sd: beta = {beta} must be positive")
  if teacher_block < 1:
    raise KdjaxError(f"g2sd: teacher_block = {teacher_block} must be at least 1")

  def both(student, teacher) -> tuple[Array, Array]:  # [L, B, T, D]
    own = student.require("decoder_states", "the student")
    told = teacher.require("decoder_states", "the teacher")
    if teacher_block > told.shape[0]:
      raise KdjaxError(
        f"g2sd: teacher_block = {teacher_block}, but the teacher's decoder has {told.shape[0]}"
        " blocks"
      )
    if own.shape[1:3] != told.shape[1:3]:
      raise KdjaxError(
        f"g2sd: the student decodes {own.shape[2]} tokens and the teacher {told.shape[2]}; give"
        " both the same image and patch"
      )
    return own, told

  def init(rng, student, teacher, batch):
    own, told = both(student, teacher)
    width = told.shape[-1]
    return ObjectiveVars({"predictor": init_mlp(rng, (own.shape[-1], width, width))})

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = both(student, teacher)
    own = apply_mlp(variables.params["predictor"], own[-1], activation=_GELU)
    where = valid(batch, own[..., 0])
    if masked_only:
      masked = student.require("masked", "the student")
      where = where & jnp.pad(masked, ((0, 0), (1, 0)))
    values = smooth_hint(own, told[teacher_block - 1], beta=beta, where=where)
    return ObjectiveResult({"": Term(values, where)})

  own_taps = _STATES | ({"masked"} if masked_only else frozenset())
  return Objective(apply=apply, taps=Taps(own_taps, _STATES), init=init)


def masked_reconstruction(*, standardise: bool = True) -> Objective:
  """MAE's own loss: the mean squared error of the pixels of masked patches.

  Args:
    standardise: each patch's pixels have zero mean and unit variance first.

  Returns:
    An objective for `masked_autoencoder`, with or without a teacher, which it does not ask.

  Reference:
    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
    https://arxiv.org/abs/2111.06377
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    made = student.require("reconstruction", "the student")
    target = patches_of(batch["image"], made.shape[1], made.shape[2])
    if standardise:
      mean = target.mean(-1, keepdims=True)
      spread = jnp.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
      target = (target - mean) / spread
    error = jnp.mean((made - target) ** 2, axis=-1)
    where = student.require("masked", "the student") & valid(batch, error)
    return ObjectiveResult({"": Term(error, where)})

  return Objective(apply=apply, taps=Taps(frozenset({"reconstruction", "masked"})))


def patches_of(
  image: Float[Array, "batch height width channel"], patches: int, pixels: int
) -> Float[Array, "batch patch pixel"]:
  """An image as square patches, row by row, each of (row, column, channel)."""
  batch, height, width, channels = image.shape
  side = round((pixels // channels) ** 0.5)
  cut = image.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
  return cut.reshape(batch, patches, pixels).astype(jnp.float32)
