"""Uncertainty-weighted distillation into two heads: worked values, limits, which rows count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import robustify
from kdjax.objectives.base import total
from kdjax.objectives.robustify import uncertainty
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied, outputs

V = 5


@pytest.fixture
def given():
  """(student, teacher, batch) of four images in two views, the last of them padding."""
  heads = {name: outputs(i).logits for i, name in enumerate(("clean", "robust", "combined"))}
  batch = {"label": jnp.repeat(jnp.array([0, 3, -1, 2]), 2), "view": jnp.tile(jnp.arange(2), 4)}
  return Outputs(head_logits=heads), outputs(7), batch | {"mask": jnp.arange(8) < 6}


def test_terms_are_what_they_are_said_to_be(given):
  student, teacher, _ = given
  out, _ = applied(robustify(temperature=2.0), *given)
  label, doubt = np.array([0, 3]), np.asarray(uncertainty(teacher.logits))
  known, damaged, clean = np.array([1, 3]), np.array([1, 3, 5]), np.array([0, 2, 4])
  heads = student.head_logits

  def mean(name):
    term = out.loss[name]
    return float(jnp.where(term.where, term.values, 0).sum()) / int(term.where.sum())

  for name in ("robust", "combined"):
    kd = losses.hinton_kd(heads[name], teacher.logits, temperature=2.0)
    ce = losses.cross_entropy(heads[name][known], label)
    np.testing.assert_allclose(mean(f"{name}/kd"), ((1 - doubt) * kd)[damaged].mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(f"{name}/ce"), (doubt[known] * ce).mean(), rtol=1e-5)
  kd = losses.hinton_kd(heads["combined"], heads["clean"], temperature=2.0)
  np.testing.assert_allclose(mean("clean/kd"), kd[clean].mean(), rtol=1e-5)
  ce = losses.cross_entropy(heads["combined"][clean[:2]], label)
  np.testing.assert_allclose(mean("clean/ce"), ce.mean(), rtol=1e-5)
  num, den = out.metrics["uncertainty"]
  np.testing.assert_allclose(num / den, doubt[damaged].mean(), rtol=1e-5)


def test_a_sure_teacher_leaves_distillation_and_an_unsure_one_labels(given):
  student, _, batch = given
  sure = Outputs(logits=1e4 * jax.nn.one_hot(jnp.arange(8) % V, V))
  unsure = Outputs(logits=jnp.zeros((8, V)))
  out, _ = applied(robustify(), student, sure, batch)
  np.testing.assert_allclose(out.loss["robust/ce"].values, 0, atol=1e-6)
  kd = losses.hinton_kd(student.head_logits["robust"], sure.logits, temperature=4.0)
  term = out.loss["robust/kd"]
  np.testing.assert_allclose(term.values[term.where], kd[term.where], rtol=1e-5)
  out, _ = applied(robustify(), student, unsure, batch)
  np.testing.assert_allclose(out.loss["robust/kd"].values, 0, atol=1e-5)
  out, _ = applied(robustify(uncertain=False), student, unsure, batch)
  half, where = out.loss["robust/ce"].values, out.loss["robust/ce"].where
  ce = losses.cross_entropy(student.head_logits["robust"], jnp.maximum(batch["label"], 0))
  np.testing.assert_allclose(half[where], ce[where] / 2, rtol=1e-5)


def test_no_gradient_reaches_clean_head_or_teacher_and_padding_does_not_count(given):
  student, teacher, batch = given

  def loss(heads, logits):
    out, _ = applied(robustify(), Outputs(head_logits=heads), Outputs(logits=logits), batch)
    return total(out)

  value, (grad, told) = jax.value_and_grad(loss, (0, 1))(student.head_logits, teacher.logits)
  assert not told.any() and not grad["clean"].any()
  assert grad["robust"][1::2][:3].any(axis=1).all() and not grad["robust"][::2].any()
  spoiled = {name: x.at[6:].set(jnp.nan) for name, x in student.head_logits.items()}
  other = loss(spoiled, teacher.logits.at[6:].set(jnp.nan))
  np.testing.assert_allclose(other, value, rtol=1e-6)
  half = {name: x.astype(jnp.bfloat16) for name, x in student.head_logits.items()}
  np.testing.assert_allclose(loss(half, teacher.logits), value, rtol=2e-2)


def test_uncertainty_of_worked_values():
  logits = jnp.log(jnp.array([[0.5, 0.5, 1e-30, 1e-30], [0.25] * 4]))
  np.testing.assert_allclose(uncertainty(logits), [0.5, 1.0], rtol=1e-5)
  assert uncertainty(jnp.array([0.0, -jnp.inf])) == 0


def test_what_does_not_fit_is_told(given):
  student, teacher, batch = given
  with pytest.raises(KdjaxError, match="temperature = 0 must be positive"):
    robustify(temperature=0)
  with pytest.raises(KdjaxError, match="'name': 'two_views'"):
    applied(robustify(), student, teacher, {k: v for k, v in batch.items() if k != "view"})
