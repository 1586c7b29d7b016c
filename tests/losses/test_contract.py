"""The contract of every public loss on logits, found by signature: nothing to add for a new one.

A loss is found when its first argument is `student_logits` (or `logits`, with a second array).
`ARRAYS` says how to make the other arrays, `OPTIONS` gives values to options without default.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import losses
from kdjax.errors import KdjaxError

from .checks import jit

ROWS, CLASSES = 8, 6  # one shape nearly everywhere: compiling takes most of the time

ARRAYS: dict[str, Callable] = {
  "teacher_logits": lambda teacher, labels: teacher,
  "labels": lambda teacher, labels: labels,
  "signal": lambda teacher, labels: losses.top_k_signal(teacher, k=min(3, teacher.shape[-1])),
}
OPTIONS = {
  "interpolated_cross_entropy": {"mix": 0.3},
  "sparse_cross_entropy": {"tail": "bucket"},
  "sparse_forward_kl": {"tail": "bucket"},
}
# The student also enters a target or a weight that passes no gradient, so the gradient is not the
# derivative of the value. Their own tests compare it with its formula.
NOT_THE_DERIVATIVE = {"adaptive_kl", "interpolated_cross_entropy"}
# Not differentiable where both sides are equal.
KINKED = {"sorted_probability_distance", "total_variation"}
# The teacher may have another vocabulary: here it has so many classes more than the student.
MORE_CLASSES = {"sorted_probability_distance": 2}


@dataclasses.dataclass(frozen=True)
class Case:
  name: str

  @property
  def parameters(self) -> list[str]:
    return list(inspect.signature(getattr(losses, self.name)).parameters)

  @property
  def arrays(self) -> list[str]:
    return [name for name in self.parameters[1:] if name in ARRAYS]

  def __call__(self, student, teacher, labels, **options):
    if self.name in MORE_CLASSES:
      teacher = _with_more(teacher, MORE_CLASSES[self.name], options.get("axis", -1))
    arrays = [ARRAYS[name](teacher, labels) for name in self.arrays]
    return getattr(losses, self.name)(student, *arrays, **{**OPTIONS.get(self.name, {}), **options})

  def __str__(self):
    return self.name


def _with_more(teacher, number: int, axis: int):
  """Logits with more classes, each one below the largest; no order of the others changes them."""
  if not hasattr(teacher, "ndim") or axis >= teacher.ndim:
    return teacher
  more = jnp.repeat(jnp.max(teacher, axis, keepdims=True) - 1, number, axis)
  return jnp.concatenate([teacher, more], axis)


def _is_logits_loss(name: str) -> bool:
  if not inspect.isfunction(getattr(losses, name)):
    return False
  parameters = inspect.signature(getattr(losses, name)).parameters
  first, *rest = parameters
  return first in ("student_logits", "logits") and "where" in rest


CASES = [Case(name) for name in losses.__all__ if _is_logits_loss(name)]
WITH = {
  part: [case for case in CASES if part in case.parameters]
  for part in ("teacher_logits", "labels", "signal", "temperature", "axis")
}
WITH["same_classes"] = [case for case in WITH["teacher_logits"] if case.name not in MORE_CLASSES]
every = pytest.mark.parametrize("case", CASES, ids=str)


def with_argument(name: str):
  return pytest.mark.parametrize("case", WITH[name], ids=str)


@functools.cache
def _compiled(case: Case):
  def total(student, teacher, labels, where):
    values = case(student, teacher, labels, where=where)
    return jnp.sum(values), values

  return jit(jax.grad(total, argnums=(0, 1), has_aux=True))


def run(case: Case, student, teacher, labels, where=None):
  """Values, gradient by the student and gradient by the teacher; compiled once per shape."""
  if where is None:
    where = np.ones(np.shape(student)[:-1], bool)
  (by_student, by_teacher), values = _compiled(case)(student, teacher, labels, where)
  return values, by_student, by_teacher


def example(seed: int = 0, rows: int = ROWS, classes: int = CLASSES):
  rng = np.random.default_rng(seed)
  student, teacher = (2 * rng.standard_normal((2, rows, classes))).astype(np.float32)
  return student, teacher, rng.integers(0, classes, rows).astype(np.int32)


def close(actual, wanted, atol=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=atol)


def test_every_kind_of_loss_is_found():
  names = {case.name for case in CASES}
  assert {"forward_kl", "decoupled_kd", "cross_entropy", "sparse_forward_kl"} <= names
  assert "standardize_logits" not in names


@every
def test_every_array_argument_is_known(case):
  options = {"temperature", "axis", "where", "tail", "mix", "alpha", "beta", "gamma"}
  signature = inspect.signature(getattr(losses, case.name))
  for parameter in list(signature.parameters.values())[1:]:
    if parameter.kind is parameter.KEYWORD_ONLY:
      known = parameter.default is not parameter.empty or parameter.name in OPTIONS[case.name]
      assert known, f"give {parameter.name} of {case.name} a value in OPTIONS"
    else:
      assert parameter.name in ARRAYS, f"say in ARRAYS how to make {parameter.name}"
      assert parameter.name not in options, f"{parameter.name} must be keyword-only"


@every
def test_values_are_per_row_float32_and_the_same_under_jit(case):
  x = example()
  plain = case(*map(jnp.asarray, x))
  assert plain.shape == (ROWS,) and plain.dtype == jnp.float32
  assert np.isfinite(plain).all() and (np.abs(plain) > 1e-4).any()
  close(run(case, *x)[0], plain)


@every
def test_vmap_over_a_leading_axis(case):
  stacked = [jnp.stack(arrays) for arrays in zip(example(1), example(2), strict=True)]
  together = jit(jax.vmap(case))(*stacked)
  for index in range(2):
    close(together[index], run(case, *(x[index] for x in stacked))[0])


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in NOT_THE_DERIVATIVE], ids=str)
def test_gradient_is_the_slope(case):
  student, teacher, labels = example(3)
  direction = np.random.default_rng(4).standard_normal(student.shape).astype(np.float32)
  step = 0.002  # short, since some losses have kinks
  above = run(case, student + step * direction, teacher, labels)[0]
  below = run(case, student - step * direction, teacher, labels)[0]
  slope = np.sum(above - below) / (2 * step)
  gradient = run(case, student, teacher, labels)[1]
  np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=2e-3, atol=2e-3)


@every
def test_bfloat16_is_computed_in_float32(case):
  student, teacher, labels = example(5)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
  values = run(case, *half, labels)[0]
  assert values.dtype == jnp.float32
  close(values, run(case, *(x.astype(jnp.float32) for x in half), labels)[0])


@every
def test_no_gradient_reaches_the_teacher(case):
  _, by_student, by_teacher = run(case, *example(6))
  assert np.abs(by_student).max() > 1e-3
  np.testing.assert_array_equal(by_teacher, 0.0)


@every
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_rows_that_do_not_count_leave_no_trace(case, poison):
  student, teacher, labels = example(7)
  where = np.array([True, False, True, False, True, True, False, False])
  kept = run(case, student[where], teacher[where], labels[where])
  student[1], teacher[1, 2:], labels[1] = poison, poison, -1
  student[3, 0], labels[3] = poison, 10**6
  teacher[6] = poison
  values, by_student, by_teacher = run(case, student, teacher, labels, where)
  np.testing.assert_array_equal(values[~where], 0.0)
  np.testing.assert_array_equal(by_student[~where], 0.0)
  np.testing.assert_array_equal(by_teacher, 0.0)
  close(values[where], kept[0])
  close(by_student[where], kept[1])


@every
def test_no_row_counts(case):
  values, by_student, _ = run(case, *example(8), np.zeros(ROWS, bool))
  np.testing.assert_array_equal(values, 0.0)
  np.testing.assert_array_equal(by_student, 0.0)


@every
def test_where_broadcasts(case):
  x = example(8)
  values = case(*map(jnp.asarray, x), where=jnp.array([True]))
  close(values, run(case, *x)[0])


@every
def test_a_shift_of_the_logits_changes_nothing(case):
  student, teacher, labels = example(9)
  shifts = np.linspace(-20, 20, ROWS, dtype=np.float32)[:, None]
  values, gradient, _ = run(case, student, teacher, labels)
  shifted, shifted_gradient, _ = run(case, student + shifts, teacher - shifts, labels)
  np.testing.assert_allclose(shifted, values, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(shifted_gradient, gradient, rtol=1e-4, atol=1e-4)


@every
def test_the_order_of_the_classes_does_not_matter(case):
  student, teacher, labels = example(10)
  order = np.random.default_rng(11).permutation(CLASSES)
  moved = np.argsort(order)[labels].astype(np.int32)
  values, gradient, _ = run(case, student, teacher, labels)
  permuted, permuted_gradient, _ = run(case, student[:, order], teacher[:, order], moved)
  close(permuted, values)
  close(permuted_gradient, gradient[:, order])


@with_argument("axis")
def test_the_class_axis_may_be_another(case):
  student, teacher, labels = example(12)
  wanted, gradient, _ = run(case, student, teacher, labels)

  def total(student):
    values = case(student, jnp.asarray(teacher.T), jnp.asarray(labels), axis=0)
    return jnp.sum(values), values

  by_student, values = jit(jax.grad(total, has_aux=True))(student.T)
  close(values, wanted)
  close(by_student, gradient.T)


@with_argument("axis")
def test_a_missing_axis_is_named(case):
  with pytest.raises(KdjaxError, match="axis is 2"):
    case(*map(jnp.asarray, example()), axis=2)


@every
def test_sharded_over_eight_devices_equals_unsharded(case):
  x = example(13)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  assert mesh.size == 8
  where = np.array([True] * 6 + [False] * 2)
  placed = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (*x, where)]
  for sharded, whole in zip(run(case, *placed), run(case, *x, where), strict=True):
    close(sharded, whole)


@every
def test_huge_logits_stay_finite(case):
  student, teacher, labels = example(14)
  student, teacher = student.copy(), teacher.copy()
  student[0, 0], student[1], teacher[0, 1], teacher[2] = 1e4, -1e4, 1e4, 1e4
  for result in run(case, student, teacher, labels):
    assert np.isfinite(result).all()


@every
def test_classes_that_both_sides_exclude_stay_finite(case):
  student, teacher, _ = example(15)
  student[:, 3:5] = teacher[:, 3:5] = -np.inf
  student[1, 0] = teacher[1, 0] = -np.inf
  student[2, 1:] = teacher[2, 1:] = -np.inf  # one class is left
  labels = np.array([1, 2, 0, 5, 0, 1, 2, 5], np.int32)  # none that is excluded
  values, by_student, _ = run(case, student, teacher, labels)
  assert np.isfinite(values).all() and np.isfinite(by_student).all()
  np.testing.assert_array_equal(by_student[:, 3:5], 0.0)


@every
def test_one_class(case):
  values, by_student, _ = run(case, *example(16, classes=1))
  assert np.isfinite(values).all()
  np.testing.assert_array_equal(by_student, 0.0)


@pytest.mark.parametrize(
  "case", [c for c in WITH["teacher_logits"] if c.name not in KINKED], ids=str
)
def test_the_teacher_is_a_stationary_point(case):
  _, teacher, labels = example(17)
  np.testing.assert_allclose(run(case, teacher, teacher, labels)[1], 0.0, atol=1e-5)


@with_argument("temperature")
@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.ones(2)])
def test_a_bad_temperature_is_refused(case, temperature):
  with pytest.raises(KdjaxError, match=f"{case.name}: temperature"):
    case(*map(jnp.asarray, example()), temperature=temperature)


@with_argument("teacher_logits")
def test_the_temperature_may_be_traced_and_learned(case):
  student, teacher, labels = map(jnp.asarray, example(18))
  student, teacher = student.at[:, 2].set(-jnp.inf), teacher.at[:, 2].set(-jnp.inf)
  labels = jnp.zeros_like(labels)

  def total(temperature):
    return jnp.sum(case(student, teacher, labels, temperature=temperature))

  traced = jit(jax.value_and_grad(total))
  value, slope = traced(1.7)
  np.testing.assert_allclose(value, total(1.7), rtol=1e-5)
  assert np.isfinite(slope)
  if case.name not in NOT_THE_DERIVATIVE:
    wanted = (traced(1.72)[0] - traced(1.68)[0]) / 0.04
    np.testing.assert_allclose(slope, wanted, rtol=5e-3, atol=5e-3)


@with_argument("same_classes")
def test_different_shapes_are_both_named(case):
  student, teacher, labels = map(jnp.asarray, example())
  with pytest.raises(KdjaxError) as error:
    case(student, teacher[:, :5], labels)
  assert case.name in str(error.value)
  assert "(8, 6)" in str(error.value) and "(8, 5)" in str(error.value)


@with_argument("teacher_logits")
def test_different_rows_are_both_named(case):
  student, teacher, labels = map(jnp.asarray, example())
  with pytest.raises(KdjaxError, match=rf"{case.name}: .*\(8, 6\).*\(7, \d\)"):
    case(student, teacher[:7], labels)


@with_argument("signal")
def test_a_signal_of_other_rows_or_classes_is_refused(case):
  student, teacher, labels = map(jnp.asarray, example())
  with pytest.raises(KdjaxError, match=r"\(8, 6\).*\(3, 3\)"):
    case(student, teacher[:3], labels)
  with pytest.raises(KdjaxError, match=r"\(8, 6\).*vocab is 5"):
    case(student, teacher[:, :5], labels)


@with_argument("labels")
@pytest.mark.parametrize("labels", [jnp.zeros((3,), jnp.int32), jnp.zeros((8,), jnp.float32)])
def test_labels_of_another_shape_or_dtype_are_refused(case, labels):
  student, teacher, _ = map(jnp.asarray, example())
  with pytest.raises(KdjaxError, match=rf"{case.name}: labels have shape \({labels.size},\)"):
    case(student, teacher, labels)


@with_argument("labels")
def test_a_label_out_of_range_is_not_silent(case):
  student, teacher, labels = example(19)
  labels[:2] = [-1, CLASSES]
  values = run(case, student, teacher, labels)[0]
  np.testing.assert_array_equal(np.isnan(values), [True] * 2 + [False] * (ROWS - 2))


@every
def test_where_must_be_bool_and_broadcast(case):
  x = [jnp.asarray(a) for a in example()]
  with pytest.raises(KdjaxError, match="where has dtype float32"):
    case(*x, where=jnp.ones(ROWS))
  with pytest.raises(KdjaxError, match=r"where has shape \(3,\).*\(8,\)"):
    case(*x, where=jnp.ones(3, bool))


@with_argument("same_classes")
def test_dense_signals_stand_for_their_logits(case):
  student, teacher, labels = map(jnp.asarray, example(20))
  wanted = case(student, teacher, labels)
  np.testing.assert_array_equal(case(student, losses.Dense(teacher), labels), wanted)
  # The head is the identity plus a bias that is taken away from the hidden states.
  bias = jnp.arange(CLASSES, dtype=jnp.float32)
  shifted = teacher - jnp.broadcast_to(bias, teacher.shape)
  signal = losses.HiddenHead(shifted, jnp.eye(CLASSES), bias)
  close(case(student, signal, labels), wanted)


@with_argument("teacher_logits")
def test_sparse_signals_are_refused_with_a_remedy(case):
  student, teacher, labels = map(jnp.asarray, example(21))
  top = losses.top_k_signal(teacher, k=2)
  drawn = losses.Sampled(top.ids, jnp.full(top.ids.shape, 0.5), vocab=CLASSES, temperature=1.0)
  with pytest.raises(KdjaxError, match=f"{case.name} .*TopK.*sparse_forward_kl"):
    case(student, top, labels)
  with pytest.raises(KdjaxError, match=f"{case.name} .*Sampled.*sparse_cross_entropy"):
    case(student, drawn, labels)
