"""Knowledge review: a stage of the teacher is taught to a fusion of the student's later stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.combinators import pick_layer, scheduled
from kdjax.objectives.features import STAGES, Pairs, beside_labels, counted, features_of
from kdjax.objectives.networks import apply_conv, batch_norm, init_conv, init_norm


def review(
  *,
  pairs: Pairs = STAGES,
  feature_weight: float = 1.0,
  ce_weight: float = 1.0,
  warmup_steps: int = 0,
  middle: int = 512,
) -> Objective:
  """Hierarchical context loss between fused student maps and the teacher's, from deep to shallow.

  The first block reads the student's pooled embedding and each next one a stage, the last first: a
  1x1 convolution with norm, fused with what the block before it made (brought to its size by
  nearest neighbours) under two learned attention maps, then a 3x3 convolution with norm to the
  teacher's channels. The teacher's maps are those before the activation.

  Args:
    pairs: (student stage, teacher stage), by name or index, from shallow to deep.
    feature_weight: of the sum over the pairs and the embedding; 5 for resnet32x4 to resnet8x4.
    ce_weight: of the labels; 0 leaves them out.
    warmup_steps: the feature weight rises from 0 over these steps (20 epochs in the recipe).
    middle: channels of the fused maps; as many as the student's embedding is wide if that is less.

  Returns:
    An objective that learns the blocks.

  Raises:
    KdjaxError: no pairs; when shapes are known, a stage that does not exist.

  Reference:
    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021,
    https://arxiv.org/abs/2104.09044 (megvii-research/mdistiller, distillers/ReviewKD.py).
  """
  if not pairs:
    raise KdjaxError("review: pairs is empty; give at least one (student stage, teacher stage)")

  def sides(student, teacher):
    """The student's and the teacher's maps from the deepest, the embeddings as maps of 1x1."""
    own, told = [_as_map(student.embedding)], [_as_map(teacher.embedding)]
    for student_stage, teacher_stage in reversed(pairs):
      own.append(features_of(pick_layer(student, student_stage, "student"), "features"))
      told.append(features_of(pick_layer(teacher, teacher_stage, "teacher"), "preactivations"))
    return own, told

  def init(rng, student, teacher, batch):
    own, told = jax.eval_shape(sides, student, teacher)
    width = min(middle, own[0].shape[-1])
    keys = jax.random.split(rng, len(own))
    blocks = [
      init_block(key, a.shape[-1], width, b.shape[-1], fuse=i > 0)
      for i, (key, a, b) in enumerate(zip(keys, own, told, strict=True))
    ]
    return ObjectiveVars({f"block{i}": block for i, block in enumerate(blocks)})

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = sides(student, teacher)
    where, carried, values = counted(batch, own[0]), None, jnp.float32(0)
    for i, (x, y) in enumerate(zip(own, told, strict=True)):
      made, carried = fuse(variables.params[f"block{i}"], x, carried, y.shape[1:3], where)
      values = values + losses.hierarchical_context(made, y, where=where)
    return ObjectiveResult({"": Term(values, where)})

  student_taps = frozenset({"features", "embedding"})
  reviewed = Objective(
    apply=apply, taps=Taps(student_taps, frozenset({"preactivations", "embedding"})), init=init
  )
  if warmup_steps:
    reviewed = scheduled(reviewed, optax.linear_schedule(0.0, 1.0, warmup_steps))
  return beside_labels(reviewed, feature_weight, ce_weight)


def init_block(rng, width_in: int, width: int, width_out: int, *, fuse: bool):
  """Weights of one block; `fuse` for all but the deepest."""
  keys = jax.random.split(rng, 3)
  block = {
    "in": {"conv": init_conv(keys[0], (1, 1), width_in, width), "norm": init_norm(width)},
    "out": {"conv": init_conv(keys[1], (3, 3), width, width_out), "norm": init_norm(width_out)},
  }
  if fuse:
    block["fuse"] = init_conv(keys[2], (1, 1), 2 * width, 2, bias=True)
  return block


def fuse(
  block,
  x: Float[Array, "batch height width channel"],
  carried: Float[Array, "batch height2 width2 middle"] | None,
  size: tuple[int, int],
  where: Bool[Array, "batch"],
) -> tuple[Array, Array]:
  """One block: (map for the teacher's of `size`, what the next block is given)."""
  x = batch_norm(block["in"]["norm"], apply_conv(block["in"]["conv"], x), where)
  if carried is not None:
    carried = _nearest(carried, x.shape[1:3])
    maps = jax.nn.sigmoid(apply_conv(block["fuse"], jnp.concatenate([x, carried], axis=-1)))
    x = x * maps[..., :1] + carried * maps[..., 1:]
  x = _nearest(x, size)
  made = apply_conv(block["out"]["conv"], x, padding=1)
  return batch_norm(block["out"]["norm"], made, where), x


def _nearest(x: Array, size: tuple[int, int]) -> Array:
  """Place i of n is place floor(i h / n) of the map."""
  for axis, new in enumerate(size, start=1):
    old = x.shape[axis]
    if old != new:
      x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
  return x


def _as_map(embedding: Float[Array, "batch width"]) -> Float[Array, "batch 1 1 width"]:
  return embedding[:, None, None, :]
