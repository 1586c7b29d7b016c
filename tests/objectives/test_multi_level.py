"""Multi-level logits: the official parts, from two views side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import multi_level
from kdjax.objectives.base import total
from kdjax.outputs import Outputs
from tests.losses.checks import reference
from tests.objectives.helpers import applied, labelled, outputs

STORED = reference("vision_distillers")
LABELS = np.repeat(STORED["mlld_labels"], 2)
BATCH = {"label": jnp.asarray(LABELS), "view": jnp.tile(jnp.arange(2), 8)}


def rows(weak, strong):
  return Outputs(logits=jnp.stack([weak, strong], 1).reshape(16, -1))


TEACHER = rows(jnp.asarray(STORED["mlld_told_weak"]), jnp.asarray(STORED["mlld_told_strong"]))


def mean_of(names, weak, **arguments):
  student = rows(weak, jnp.asarray(STORED["mlld_strong"]))
  out, _ = applied(multi_level(**arguments), student, TEACHER, BATCH)
  return total(out._replace(loss={name: out.loss[name] for name in names}))


@pytest.mark.parametrize(("key", "name"), [("ce", "ce"), ("cc", "kd/class"), ("bc", "kd/batch")])
def test_official_parts(key, name):
  weak = jnp.asarray(STORED["mlld_weak"])
  value, gradient = jax.value_and_grad(lambda w: mean_of([name], w))(weak)
  np.testing.assert_allclose(value, STORED[f"mlld_{key}"], rtol=1e-5)
  np.testing.assert_allclose(gradient, STORED[f"mlld_{key}_grad"], rtol=1e-5, atol=1e-6)


def test_official_distillation_but_for_its_two_slips():
  # The official strong term takes the weak view at temperatures 2 and 6.
  def official(weak):
    right = mean_of(["kd/weak"], weak) + mean_of(["kd/strong"], weak, temperatures=(3.0, 4.0, 5.0))
    told = jnp.asarray(STORED["mlld_told_weak"])
    slips = [losses.hinton_kd(weak, told, temperature=t).mean() for t in (2.0, 6.0)]
    return right + 0.9 * sum(slips)

  value, gradient = jax.value_and_grad(official)(jnp.asarray(STORED["mlld_weak"]))
  np.testing.assert_allclose(value, STORED["mlld_kd"], rtol=1e-5)
  np.testing.assert_allclose(gradient, STORED["mlld_kd_grad"], rtol=1e-4, atol=1e-5)


def test_examples_that_do_not_count_are_in_no_relation():
  def value(mask, weak):
    student = rows(weak, jnp.asarray(STORED["mlld_strong"]))
    out, _ = applied(multi_level(), student, TEACHER, BATCH | {"mask": jnp.repeat(mask, 2)})
    return total(out)

  weak, mask = jnp.asarray(STORED["mlld_weak"]), jnp.arange(8) < 6
  changed = weak.at[6:].multiply(3.0)
  np.testing.assert_allclose(value(mask, weak), value(mask, changed), rtol=1e-6)
  assert abs(float(value(mask | True, weak) - value(mask | True, changed))) > 0.1


def test_one_view_and_bad_temperatures_are_refused():
  with pytest.raises(KdjaxError, match="put two_views into"):
    applied(multi_level(), outputs(0), outputs(1), labelled())
  for wrong in ((), (2.0, 0.0)):
    with pytest.raises(KdjaxError, match="multi_level: temperatures"):
      multi_level(temperatures=wrong)
