"""PromptKD's loss against the official code, and what it leaves alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses._common import unit
from kdjax.objectives import prompt_kd
from kdjax.objectives.base import total
from tests.objectives.helpers import applied, labelled, outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "clip_distillers.npz"


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


@pytest.mark.parametrize("name, temperature, weight", [("pkd", 1, 1000), ("pkd_soft", 2, 200)])
def test_loss_and_gradient_are_the_official_ones(reference, name, temperature, weight):
  told, texts = unit(jnp.asarray(reference["pkd_told"])), jnp.asarray(reference["pkd_texts"])
  teacher = outputs(0, logits=20 * told @ texts.T)
  batch = {"label": jnp.full(5, -1)}  # it reads no labels
  objective = prompt_kd(kd_weight=float(weight), temperature=float(temperature))

  def loss(features):
    student = outputs(0, logits=15 * unit(features) @ texts.T)
    return total(applied(objective, student, teacher, batch)[0])

  value, grad = jax.value_and_grad(loss)(jnp.asarray(reference["pkd_features"]))
  np.testing.assert_allclose(value, reference[name], rtol=1e-5)
  np.testing.assert_allclose(grad, reference[f"{name}_grad"], rtol=1e-4, atol=1e-2)


def test_equal_logits_cost_nothing_and_padding_does_not_count():
  student, batch = outputs(0), labelled()
  value, grad = jax.value_and_grad(
    lambda logits: total(applied(prompt_kd(), outputs(0, logits=logits), student, batch)[0])
  )(student.logits)
  np.testing.assert_allclose(value, 0, atol=1e-3)
  np.testing.assert_allclose(grad, 0, atol=1e-3)
  changed = student.logits.at[-1].set(jnp.nan)
  assert total(applied(prompt_kd(), outputs(0, logits=changed), student, batch)[0]) == value


def test_classes_of_no_probability_halve_the_loss_when_they_double_the_number():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  none = jnp.full_like(student.logits, -1e9)
  wide = [outputs(0, logits=jnp.concatenate([x.logits, none], -1)) for x in (student, teacher)]
  once, twice = (
    total(applied(prompt_kd(), *pair, batch)[0]) for pair in ((student, teacher), wide)
  )
  np.testing.assert_allclose(twice, once / 2, rtol=1e-5)


def test_bfloat16_logits_are_compared_in_float32():
  half = [outputs(i, logits=outputs(i).logits.astype(jnp.bfloat16)) for i in (0, 1)]
  wide = [outputs(i, logits=x.logits.astype(jnp.float32)) for i, x in enumerate(half)]
  values = [total(applied(prompt_kd(), *pair, labelled())[0]) for pair in (half, wide)]
  np.testing.assert_allclose(*values, rtol=1e-6)


def test_a_wrong_temperature_is_told():
  with pytest.raises(KdjaxError, match="temperature = 0 must be positive"):
    prompt_kd(temperature=0)
