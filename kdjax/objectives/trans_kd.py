"""TransKD: stages of a segmentation transformer, fused from deep to shallow, and its patches."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.combinators import pick_layer
from kdjax.objectives.features import beside_labels, counted, features_of
from kdjax.objectives.networks import (
  apply_conv,
  apply_mlp,
  batch_norm,
  init_conv,
  init_mlp,
  init_norm,
)
from kdjax.objectives.patch_assistants import assist, init_assistant, init_mixer, mix
from kdjax.resolve import hint

STAGES = ("stage1", "stage2", "stage3", "stage4")
PATCHES = ("embed1", "embed2", "embed3", "embed4")
PRESETS = ("base", "gl", "ea")
_TAPS = frozenset({"features"})


def trans_kd(
  *,
  stages: Sequence[str] = STAGES,
  patches: Sequence[str] = PATCHES,
  patch_weights: Sequence[float] = (0.1, 0.1, 0.5, 1.0),
  feature_weight: float = 1.0,
  ce_weight: float = 1.0,
  middle: int = 64,
  preset: str = "base",
  heads: int = 8,
) -> Objective:
  """Labels, cross selective fusion of stages and patch embedding alignment.

  From the deepest stage on, the student's map at `middle` channels is mixed with what the stage
  behind it made, channel by channel, by learned shares that sum to 1; from each mixture a 3x3
  convolution makes a map like the teacher's. Embedded patches are compared after a linear layer.

  Args:
    stages: features of both sides, from shallow to deep.
    patches: features of both sides that hold embedded patches.
    patch_weights: of the mean squared difference of each of these.
    feature_weight: of both kinds of terms; the maps' have weight 1 among them.
    ce_weight: of the labels of places; 0 leaves them out.
    middle: channels of the fused maps.
    preset: of the paper's three. "gl" mixes the deepest patches by attention and a gated
      convolution first; "ea" adds, at each stage, patches that an assistant of the teacher's width
      embeds, both with learned shares.
    heads: of the attention of "gl".

  Returns:
    An objective that learns the fusion and the linear layers.

  Raises:
    KdjaxError: no stages, weights that are not one for each, no such preset; when shapes are known,
      features that do not exist or differ in height and width, heads that do not divide channels.

  Reference:
    Liu et al., "TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation",
    2022, https://arxiv.org/abs/2202.13393 (RuipingL/TransKD, train/CSF.py,
    CSF_GLMixer.py and CSF_EA.py; for a batch of one example they have other layers, which are left
    out here).
  """
  if not stages or len(patches) != len(patch_weights):
    raise KdjaxError(
      f"trans_kd: stages = {list(stages)} must not be empty, and patch_weights ="
      f" {list(patch_weights)} have one weight for each of patches = {list(patches)}"
    )

  if preset not in PRESETS:
    raise KdjaxError(f"trans_kd: preset = {preset!r} does not exist{hint(preset, PRESETS)}")
  if preset == "ea" and len(patches) > len(stages):
    raise KdjaxError(
      f"trans_kd: preset 'ea' embeds the stage before each of patches = {list(patches)}; stages ="
      f" {list(stages)} are fewer"
    )

  def maps(outputs, names: Sequence[str], side: str) -> list[Array]:
    return [features_of(pick_layer(outputs, name, side), "features") for name in names]

  def sides(student, teacher, names: Sequence[str]) -> tuple[list[Array], list[Array]]:
    own, told = maps(student, names, "student"), maps(teacher, names, "teacher")
    for name, a, b in zip(names, own, told, strict=True):
      if a.shape[:3] != b.shape[:3]:
        raise KdjaxError(
          f"trans_kd: {name} of the student has shape {a.shape} and of the teacher {b.shape}; the"
          " same height and width are wanted"
        )
    return own, told

  def before(student, batch) -> list[tuple[Array, int]]:
    """What each of the student's patches are made of, and the stride between them."""
    made = maps(student, patches, "student")
    whole = [batch["image"], *maps(student, stages, "student")]
    return [(x, x.shape[1] // y.shape[1]) for x, y in zip(whole, made, strict=False)]

  def align(params, own: Sequence[Array], student, batch) -> list[Array]:
    """The student's patches at the teacher's widths."""
    if preset == "gl":
      own = [*own[:-1], mix(params["mixer"], own[-1], heads)]
    aligned = [apply_mlp(params[f"patch{i}"], x) for i, x in enumerate(own)]
    if preset == "ea":
      for i, (x, stride) in enumerate(before(student, batch)):
        assisted = assist(params[f"assistant{i}"], x, stride)
        aligned[i] = params["shares"][i] * aligned[i] + assisted
    return aligned

  def init(rng, student, teacher, batch):
    shapes = jax.eval_shape(
      lambda s, t: (sides(s, t, stages), sides(s, t, patches)), student, teacher
    )
    (own, told), (own_patches, told_patches) = shapes
    keys = jax.random.split(rng, len(stages) + len(patches))
    params = {
      f"fuse{i}": init_fusion(key, a.shape[-1], middle, b.shape[-1], fuse=i < len(own) - 1)
      for i, (key, a, b) in enumerate(zip(keys[: len(own)], own, told, strict=True))
    }
    rest = zip(keys[len(own) :], own_patches, told_patches, strict=True)
    for i, (key, a, b) in enumerate(rest):
      params[f"patch{i}"] = init_mlp(key, (a.shape[-1], b.shape[-1]))
    if preset == "gl":
      width = own_patches[-1].shape[-1]
      if width % heads:
        raise KdjaxError(
          f"trans_kd: heads = {heads} do not divide {patches[-1]}'s {width} channels"
        )
      params["mixer"] = init_mixer(jax.random.fold_in(rng, 0), width)
    if preset == "ea":
      number = len(patches)
      params["shares"] = 0.1 * (1 + jnp.arange(number, dtype=jnp.float32))
      for i, (x, stride) in enumerate(before(student, batch)):
        key, share = jax.random.fold_in(rng, i), 0.1 * (number + i + 1)
        wide = told_patches[i].shape[-1]
        params[f"assistant{i}"] = init_assistant(key, x.shape[-1], wide, stride, share)
    return ObjectiveVars(params)

  def apply(variables, student, teacher, batch, *, step, rng):
    params = variables.params
    own, told = sides(student, teacher, stages)
    where, carried, values = counted(batch, own[0]), None, jnp.float32(0)
    for i in reversed(range(len(stages))):
      made, carried = fuse(params[f"fuse{i}"], own[i], carried, where)
      values = values + losses.hierarchical_context(made, told[i], where=where)
    terms = {"maps": Term(values, where)}
    own, told = sides(student, teacher, patches)
    for i, (a, b) in enumerate(zip(align(params, own, student, batch), told, strict=True)):
      apart = losses.hint(a, b, where=where)
      terms[patches[i]] = Term(apart, where, patch_weights[i])
    return ObjectiveResult(terms)

  kd = Objective(apply=apply, taps=Taps(_TAPS, _TAPS), init=init)
  return beside_labels(kd, feature_weight, ce_weight)


def init_fusion(rng, width_in: int, width: int, width_out: int, *, fuse: bool):
  """Weights of one stage; `fuse` for all but the deepest."""
  keys = jax.random.split(rng, 5)
  block = {
    "in": {"conv": init_conv(keys[0], (1, 1), width_in, width), "norm": init_norm(width)},
    "out": {"conv": init_conv(keys[1], (3, 3), width, width_out), "norm": init_norm(width_out)},
  }
  if fuse:
    narrow = max(width // 16, 32)
    block["squeeze"] = init_mlp(keys[2], (width, narrow), bias=False)
    block["squeeze_norm"] = init_norm(narrow)
    block["own"], block["other"] = (init_mlp(key, (narrow, width)) for key in keys[3:])
  return block


def fuse(
  block,
  x: Float[Array, "batch height width channel"],
  carried: Float[Array, "batch height2 width2 middle"] | None,
  where: Bool[Array, "batch"],
) -> tuple[Array, Array]:
  """One stage: (map for the teacher's, the mixture that the next stage is given)."""
  x = batch_norm(block["in"]["norm"], apply_conv(block["in"]["conv"], x), where)
  if carried is not None:
    for axis in (1, 2):  # nearest neighbours
      old, new = carried.shape[axis], x.shape[axis]
      carried = jnp.take(carried, jnp.arange(new) * old // new, axis=axis)
    whole = (x + carried).mean((1, 2))
    squeezed = batch_norm(block["squeeze_norm"], apply_mlp(block["squeeze"], whole), where)
    squeezed = jax.nn.relu(squeezed)
    scores = jnp.stack([apply_mlp(block[name], squeezed) for name in ("own", "other")])
    own, other = jax.nn.softmax(scores, axis=0)[:, :, None, None]
    x = x * own + carried * other
  made = apply_conv(block["out"]["conv"], x, padding=1)
  return batch_norm(block["out"]["norm"], made, where), x
