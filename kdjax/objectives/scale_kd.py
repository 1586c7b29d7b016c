"""ScaleKD: a vision transformer teaches any network through attention and its own last layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses import direction_distance
from kdjax.objectives.attention_projector import init_projector, project
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.combinators import PER_STAGE, pick_layer
from kdjax.objectives.features import beside_labels, counted, features_of

Layer = str | int
VIEWS = ("spatial", "alternative")


def scale_kd(
  *,
  student_layers: tuple[Layer, Layer] = ("stage3", "stage4"),
  teacher_layers: tuple[Layer, Layer] = ("stage3", "stage4"),
  heads: tuple[int, int] = (3, 6),
  weights: tuple[float, float] = (0.08, 0.06),
  last_weights: tuple[float, float] | None = None,
  self_query: bool = False,
  scale: float = 5.0,
  ce_weight: float = 1.0,
) -> Objective:
  """Two maps of the student, in two views, against the teacher's last map.

  The earlier map is projected to where the teacher's layer of the same rank is and goes through the
  teacher's own layers behind it, which are frozen and pass gradients. The later one is projected to
  the last layer at once. Each view has projectors of its own: the spatial view compares directions
  at each place, the alternative one does so without each channel's mean.

  Args:
    student_layers: (earlier, later): names of stages, or indices of hidden states whose tokens are
      a square.
    teacher_layers: (where the earlier map goes in, the last layer), likewise; for `swin` stages,
      for `vit` hidden states, such as (-2, -1).
    heads: of the projectors' attention, of the earlier and the later map.
    weights: of the spatial and the alternative view.
    last_weights: those of the later map; the same where None. (0.08, 0) for Swin-S into ResNet-50.
    self_query: whether the later map's projectors learn their queries; else these are what the
      earlier map became. The earlier map's always learn them.
    scale: attention scores are multiplied by it.
    ce_weight: of the labels; 0 leaves them out. The strong recipe combines this objective with
      `hinton_kd` at temperature 1, half labels and half teacher.

  Returns:
    An objective that learns the projectors. Maps are compared before the teacher's final norm,
    which no tap reaches; the official code compares them behind it.

  Raises:
    KdjaxError: when shapes are known: layers that do not exist or are in the wrong order, tokens
      that are no square, heads that do not divide the teacher's channels.

  Reference:
    Fan et al., "ScaleKD: Strong Vision Transformers Could Be Excellent Teachers", NeurIPS 2024,
    https://arxiv.org/abs/2411.06786 (deep-optimization/ScaleKD, mmcls/models/dis_losses/fmdv2.py
    and classifiers/distiller.py).
  """
  by_map = dict(zip(("earlier", "later"), (weights, last_weights or weights), strict=True))

  def init(rng, student, teacher, batch):
    (low, high), (entry, last) = jax.eval_shape(
      lambda s, t: (_maps(s, student_layers, "student"), _maps(t, teacher_layers, "teacher")),
      student,
      teacher,
    )
    for number, told in zip(heads, (entry, last), strict=True):
      if told.shape[-1] % number:
        raise KdjaxError(
          f"scale_kd: heads = {tuple(heads)}; {number} does not divide the teacher's"
          f" {told.shape[-1]} channels"
        )
    params = {}
    for view, key in zip(VIEWS, jax.random.split(rng), strict=True):
      first, second = jax.random.split(key)
      params[view] = {
        "earlier": init_projector(first, low.shape[1:], entry.shape[1:], None),
        "later": init_projector(
          second, high.shape[1:], last.shape[1:], None if self_query else last.shape[-1]
        ),
      }
    return ObjectiveVars(params)

  def apply(variables, student, teacher, batch, *, step, rng):
    low, high = _maps(student, student_layers, "student")
    entry, last = _maps(teacher, teacher_layers, "teacher")
    start, stop = _places(teacher, teacher_layers)
    tokens = not isinstance(teacher_layers[1], str)
    where, terms = counted(batch, low), {}
    for i, view in enumerate(VIEWS):
      own = variables.params[view]
      made = project(own["earlier"], low, where, heads=heads[0], scale=scale)
      made = made.astype(entry.dtype)
      given = made.reshape(made.shape[0], -1, made.shape[-1]) if tokens else made
      through = teacher.segment(given, start + 1, stop + 1).reshape(last.shape)
      query = None if self_query else through
      direct = project(own["later"], high, where, heads=heads[1], scale=scale, query=query)
      for name, found in (("earlier", through), ("later", direct)):
        values = direction_distance(found, last, centred=view == "alternative", where=where)
        terms[f"{name}/{view}"] = Term(values, where, by_map[name][i])
    return ObjectiveResult(terms)

  taps = Taps(
    frozenset(map(_field, student_layers)), frozenset({*map(_field, teacher_layers), "segment"})
  )
  return beside_labels(Objective(apply=apply, taps=taps, init=init), 1.0, ce_weight)


def _field(layer: Layer) -> str:
  return "features" if isinstance(layer, str) else "hidden_states"


def _maps(outputs, layers: Sequence[Layer], side: str) -> list[Float[Array, "batch h w channel"]]:
  return [_map(outputs, layer, side) for layer in layers]


def _map(outputs, layer: Layer, side: str) -> Float[Array, "batch height width channel"]:
  """A stage's map, or a layer's tokens as a square one."""
  if isinstance(layer, str):
    return features_of(pick_layer(outputs, layer, side), "features")
  plain = dataclasses.replace(outputs, **dict.fromkeys(PER_STAGE))
  hidden = pick_layer(plain, layer, side).hidden_states
  if hidden.ndim == 4:
    return hidden
  side_length = math.isqrt(hidden.shape[1]) if hidden.ndim == 3 else 0
  if side_length**2 != (hidden.shape[1] if hidden.ndim == 3 else -1):
    raise KdjaxError(
      f"scale_kd: hidden state {layer} of the {side} has shape {hidden.shape}; patches that are a"
      " square are wanted, [B, T, D], and no class token (pool = 'mean')"
    )
  return hidden.reshape(hidden.shape[0], side_length, side_length, -1)


def _places(teacher, layers: Sequence[Layer]) -> tuple[int, int]:
  """Which of the teacher's layers these are, from 0."""
  if isinstance(layers[1], str):
    names = sorted(teacher.features)
    start, stop = (names.index(layer) for layer in layers)
  else:
    depth = len(teacher.hidden_states)
    start, stop = (layer % depth for layer in layers)
  if start >= stop:
    raise KdjaxError(
      f"scale_kd: teacher_layers = {tuple(layers)} must be (earlier, later) of the teacher's layers"
    )
  return start, stop
