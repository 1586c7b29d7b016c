"""Teachers: what they give, what they keep, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, teachers
from kdjax.errors import KdjaxError
from tests.programs.helpers import SHAPE, TEACHER_MODEL, batch, close

LOGITS = frozenset({"logits"})


def made(seed):
  return teachers.frozen(TEACHER_MODEL, TEACHER_MODEL.init(jax.random.key(seed)))


def logits(teacher):
  return teacher.apply(teacher.frozen, (), batch(), taps=LOGITS).logits


def test_an_ensemble_is_the_weighted_mean_of_probabilities_or_logits():
  parts = [made(1), made(2)]
  mixture = teachers.ensemble(parts, weights=[3.0, 1.0])
  probs = [np.asarray(jax.nn.softmax(logits(part))) for part in parts]
  wanted = np.log(0.75 * probs[0] + 0.25 * probs[1])
  np.testing.assert_allclose(logits(mixture), wanted, rtol=1e-5, atol=1e-6)
  assert mixture.taps == {"logits"}
  geometric = teachers.ensemble(parts, weights=[3.0, 1.0], rule="logits")
  wanted = 0.75 * logits(parts[0]) + 0.25 * logits(parts[1])
  np.testing.assert_allclose(logits(geometric), wanted, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_a_frozen_teacher():
  teacher = made(1)
  grad = jax.grad(lambda w: teacher.apply(w, (), batch(), taps=LOGITS).logits.sum())(teacher.frozen)
  jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grad)


def test_a_dtype_applies_to_its_weights():
  teacher = teachers.frozen(TEACHER_MODEL, TEACHER_MODEL.init(jax.random.key(1)), dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(teacher.frozen)} == {jnp.dtype("bfloat16")}
  np.testing.assert_allclose(logits(teacher), logits(made(1)), atol=0.1)


def test_the_average_warms_up_from_a_copy_of_the_student():
  # Step 0 takes the student whole; step 1 at most half of the old: 1 - 1/2.
  teacher = teachers.ema(TEACHER_MODEL, decay=0.999)
  old = jax.tree.map(jnp.zeros_like, TEACHER_MODEL.init(jax.random.key(0)))
  student = jax.tree.map(jnp.ones_like, old)
  close(teacher.update(old, student, step=jnp.int32(0)), student)
  close(teacher.update(old, student, step=jnp.int32(1)), jax.tree.map(lambda x: 0.5 * x, student))
  late = teacher.update(old, student, step=jnp.int32(10**6))
  close(late, jax.tree.map(lambda x: 0.001 * x, student), rtol=1e-4)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: teachers.ensemble([]), "teachers is empty"),
    (lambda: teachers.ensemble([made(1)], weights=[0.0]), r"weights = \[0.0\]"),
    (lambda: teachers.ensemble([made(1)], weights=[1.0, 2.0]), "must be 1 positive"),
    (lambda: teachers.ensemble([made(1)], rule="sum"), "rule is 'sum'"),
    (lambda: teachers.ensemble([made(1)], temperature=0), "temperature is 0"),
    (
      lambda: teachers.ensemble(
        [made(1), teachers.ema(models.mlp(**(SHAPE | {"num_classes": 4})))]
      ),
      r"different class counts \[3, 4\]",
    ),
    (lambda: teachers.ema(TEACHER_MODEL, decay=1.0), r"decay = 1.0 must lie in \[0, 1\)"),
  ],
)
def test_what_does_not_fit_is_refused(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()
