"""The contract of every public loss on features, found by signature.

A loss is found when its arguments start with `student_features, teacher_features`. `ARRAYS` says
how to make other arrays.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import losses
from kdjax.errors import KdjaxError

from .checks import jit

SHAPE = ROWS, SIDE, _, CHANNELS = (8, 6, 6, 3)

ARRAYS = {
  "variance": lambda: jnp.linspace(0.5, 2.0, CHANNELS),
  "margin": lambda: jnp.linspace(-1.0, -0.2, CHANNELS),
}
# Its log-variance stays at equality.
NOT_A_DISTANCE = {"variational_information"}
OF_A_BATCH = {
  "probabilistic_knowledge_transfer",
  "relational_angle",
  "relational_distance",
  "similarity_preserving",
}


def _is_feature_loss(name: str) -> bool:
  function = getattr(losses, name)
  parameters = list(inspect.signature(function).parameters) if inspect.isfunction(function) else []
  return parameters[:2] == ["student_features", "teacher_features"] and "labels" not in parameters


NAMES = [name for name in losses.__all__ if _is_feature_loss(name)]
every = pytest.mark.parametrize("name", NAMES)


def call(name: str, student, teacher, **options):
  function = getattr(losses, name)
  others = [ARRAYS[p]() for p in list(inspect.signature(function).parameters)[2:] if p in ARRAYS]
  return function(student, teacher, *others, **options)


@functools.cache
def _compiled(name: str):
  def total(student, teacher, where):
    values = call(name, student, teacher, where=where)
    return jnp.sum(values), values

  return jit(jax.grad(total, argnums=(0, 1), has_aux=True))


def run(name: str, student, teacher, where=None):
  """Values, gradient by the student and gradient by the teacher; compiled once per shape."""
  if where is None:
    where = np.ones(len(student), bool)
  (by_student, by_teacher), values = _compiled(name)(student, teacher, where)
  return values, by_student, by_teacher


def example(seed: int = 0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((2, *SHAPE)).astype(np.float32)


def close(actual, wanted, atol=1e-5):
  np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=atol)


def test_every_kind_of_loss_is_found():
  wanted = {"hint", "attention_transfer", "partial_l2", "variational_information"}
  assert wanted | OF_A_BATCH <= set(NAMES)


@every
def test_values_are_per_example_float32_and_the_same_under_jit(name):
  student, teacher = map(jnp.asarray, example())
  plain = call(name, student, teacher)
  assert plain.shape == (ROWS,) and plain.dtype == jnp.float32
  assert np.isfinite(plain).all() and (np.abs(plain) > 1e-6).all()
  close(run(name, student, teacher)[0], plain)


@every
def test_vmap_over_a_leading_axis(name):
  student, teacher = jnp.stack([example(1), example(2)], 1)
  together = jit(jax.vmap(functools.partial(call, name)))(student, teacher)
  for index in range(2):
    close(together[index], run(name, student[index], teacher[index])[0])


@every
def test_gradient_is_the_slope(name):
  student, teacher = example(3)
  direction = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
  step = 0.01 * direction
  above, below = (run(name, student + sign * step, teacher)[0] for sign in (1, -1))
  gradient = run(name, student, teacher)[1]
  scale = np.abs(gradient * direction).sum()
  slope = np.sum(np.asarray(above - below, np.float64)) / 0.02
  assert abs(np.sum(gradient * direction) - slope) < 5e-3 * scale


@every
def test_bfloat16_is_computed_in_float32(name):
  half = [jnp.asarray(x, jnp.bfloat16) for x in example(5)]
  values = run(name, *half)[0]
  assert values.dtype == jnp.float32
  close(values, run(name, *(x.astype(jnp.float32) for x in half))[0])


@every
def test_no_gradient_reaches_the_teacher(name):
  _, by_student, by_teacher = run(name, *example(6))
  assert np.abs(by_student).max() > 1e-7
  np.testing.assert_array_equal(by_teacher, 0.0)


@every
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_examples_that_do_not_count_leave_no_trace(name, poison):
  student, teacher = example(7)
  where = np.array([True, False, True, False, True, True, False, False])
  kept = run(name, student[where], teacher[where])
  student[1], teacher[3], teacher[6, 0, 0] = poison, poison, poison
  values, by_student, by_teacher = run(name, student, teacher, where)
  np.testing.assert_array_equal(values[~where], 0.0)
  np.testing.assert_array_equal(by_student[~where], 0.0)
  np.testing.assert_array_equal(by_teacher, 0.0)
  close(values[where], kept[0])
  close(by_student[where], kept[1])


@every
def test_no_example_counts(name):
  values, by_student, _ = run(name, *example(8), np.zeros(ROWS, bool))
  np.testing.assert_array_equal(values, 0.0)
  np.testing.assert_array_equal(by_student, 0.0)


@every
def test_features_of_zero_and_equal_examples_stay_finite(name):
  student, teacher = example(9)
  student[:2], teacher[1:3] = 0.0, 0.0
  student[4] = student[5]
  for result in run(name, student, teacher):
    assert np.isfinite(result).all()


@every
def test_one_example_alone_stays_finite(name):
  for result in run(name, *example(9)[:, :1]):
    assert np.isfinite(result).all()


@every
def test_sharded_over_eight_devices_equals_unsharded(name):
  x = example(10)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  assert mesh.size == 8
  where = np.array([True] * 6 + [False] * 2)
  placed = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (*x, where)]
  for sharded, whole in zip(run(name, *placed), run(name, *x, where), strict=True):
    close(sharded, whole)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NOT_A_DISTANCE])
def test_the_teacher_costs_nothing_and_is_a_stationary_point(name):
  _, teacher = example(11)
  values, gradient, _ = run(name, teacher, teacher)
  close(values, 0.0)
  close(gradient, 0.0)


@pytest.mark.parametrize("name", sorted(OF_A_BATCH))
def test_relations_do_not_need_equal_widths(name):
  student, teacher = example(12)
  values = call(name, jnp.asarray(student).reshape(ROWS, -1), jnp.asarray(teacher[:, 0]))
  assert values.shape == (ROWS,) and (values > 0).all()


@every
def test_shapes_that_do_not_fit_are_named(name):
  student, teacher = map(jnp.asarray, example())
  with pytest.raises(KdjaxError, match=rf"{name}: .*\(8, 6, 6, 3\).*\(7, 6, 6, 3\)"):
    call(name, student, teacher[:7])
  with pytest.raises(KdjaxError, match=rf"{name}: .*\(8,\)"):
    call(name, student[:, 0, 0, 0], teacher[:, 0, 0, 0])


@every
def test_where_must_be_bool_and_broadcast(name):
  student, teacher = map(jnp.asarray, example())
  with pytest.raises(KdjaxError, match="where has dtype float32"):
    call(name, student, teacher, where=jnp.ones(ROWS))
  with pytest.raises(KdjaxError, match=r"where has shape \(3,\).*\(8,\)"):
    call(name, student, teacher, where=jnp.ones(3, bool))
