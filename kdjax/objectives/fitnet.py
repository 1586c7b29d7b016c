"""FitNets: the student's map, through a learned regressor, is to equal the teacher's."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term
from kdjax.objectives.combinators import on_layers
from kdjax.objectives.features import beside_labels, counted, features_of
from kdjax.objectives.networks import apply_conv, batch_norm, init_conv, init_norm


def fitnet(
  *,
  student_stage: str | int = "stage2",
  teacher_stage: str | int = "stage2",
  feature_weight: float = 100.0,
  ce_weight: float = 1.0,
) -> Objective:
  """Mean squared difference between ReLU(norm(convolution(student))) and the teacher's map.

  The convolution brings one map to the size of the other: of a map twice as large 3x3 with stride
  2, of one half as large a transposed 4x4, else one without padding whose kernel is as large as the
  difference of the sizes plus 1. Regressor and student learn together, where the paper first
  trains the hint alone.

  Args:
    student_stage: name or index of a stage.
    teacher_stage: likewise.
    feature_weight: of the hint.
    ce_weight: of the labels; 0 leaves them out.

  Returns:
    An objective that learns the regressor.

  Raises:
    KdjaxError: when shapes are known: a stage that does not exist, or a student's map that is
      smaller than the teacher's but not half as large.

  Reference:
    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
    (megvii-research/mdistiller, distillers/FitNet.py, `ConvReg`).
  """

  def init(rng, student, teacher, batch):
    own, told = features_of(student, "features"), features_of(teacher, "features")
    size, _ = _convolution(own, told)
    conv = init_conv(rng, size, own.shape[-1], told.shape[-1], bias=True)
    return ObjectiveVars({"conv": conv, "norm": init_norm(told.shape[-1])})

  def apply(variables, student, teacher, batch, *, step, rng):
    own, told = features_of(student, "features"), features_of(teacher, "features")
    where = counted(batch, own)
    _, options = _convolution(own, told)
    own = regress(variables.params, own, where, **options)
    return ObjectiveResult({"": Term(losses.hint(own, told, where=where), where)})

  taps = frozenset({"features"})
  regressed = Objective(apply=apply, taps=Taps(taps, taps), init=init)
  pair = on_layers(regressed, [(student_stage, teacher_stage)])
  return beside_labels(pair, feature_weight, ce_weight)


def regress(
  params, x: Float[Array, "batch height width channel"], where, **options
) -> Float[Array, "batch new_height new_width new_channel"]:
  """The regressor; `options` are those of its convolution."""
  return jax.nn.relu(batch_norm(params["norm"], apply_conv(params["conv"], x, **options), where))


def _convolution(student, teacher) -> tuple[tuple[int, int], dict[str, int]]:
  """(kernel size, options) of the convolution between two maps."""
  (height, width), (wanted, wanted_width) = student.shape[1:3], teacher.shape[1:3]
  if height == 2 * wanted:
    return (3, 3), {"stride": 2, "padding": 1}
  if 2 * height == wanted:
    # Transposed: the input spread to every second place, and padded by 4 - 1 - 1.
    return (4, 4), {"dilation": 2, "padding": 2}
  if height >= wanted and width >= wanted_width:
    return (1 + height - wanted, 1 + width - wanted_width), {}
  raise KdjaxError(
    f"fitnet: the student's map is {height}x{width} and the teacher's {wanted}x{wanted_width}; the"
    " student's must be at least as large, or half as large. Choose another pair of stages"
  )
