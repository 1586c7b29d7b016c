"""Labels where there are any, the teacher elsewhere: values, gradients, what does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import labels_or_teacher
from kdjax.objectives.base import total
from tests.objectives.helpers import applied, outputs

LABEL = jnp.array([2, -1, 0, -1, 4, -1, -1, 1])
BATCH = {"label": LABEL, "mask": jnp.arange(8) < 6}


def test_each_example_has_the_one_term_or_the_other():
  student, teacher = outputs(0), outputs(1)
  out, _ = applied(labels_or_teacher(kd_weight=2.0), student, teacher, BATCH)
  np.testing.assert_array_equal(out.loss["ce"].where, [1, 0, 1, 0, 1, 0, 0, 0])
  np.testing.assert_array_equal(out.loss["kd"].where, [0, 1, 0, 1, 0, 1, 0, 0])
  known, asked = np.array([0, 2, 4]), np.array([1, 3, 5])
  ce = losses.cross_entropy(student.logits[known], LABEL[known]).mean()
  kd = losses.forward_kl(student.logits[asked], teacher.logits[asked]).mean()
  np.testing.assert_allclose(total(out), ce + 2 * kd, rtol=1e-5)


def test_gradients_and_spoiled_padding():
  teacher = outputs(1)

  @jax.jit
  @jax.value_and_grad
  def loss(logits, told):
    student = outputs(0, logits=logits)
    own = labels_or_teacher().apply(None, student, outputs(1, logits=told), BATCH, step=0, rng=None)
    return total(own)

  logits = outputs(0).logits
  value, grad = loss(logits, teacher.logits)
  assert grad[:6].any(axis=1).all() and not grad[6:].any()
  # What the teacher says of labelled and padded examples changes nothing.
  told = teacher.logits.at[jnp.array([0, 2, 4])].add(3.0).at[6:].set(jnp.nan)
  again, _ = loss(logits.at[6:].set(jnp.nan), told)
  np.testing.assert_allclose(again, value, rtol=1e-6)


def test_a_wrong_temperature_is_told():
  with pytest.raises(KdjaxError, match="temperature = 0 must be positive"):
    labels_or_teacher(temperature=0)
