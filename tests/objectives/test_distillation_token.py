"""DeiT's two tokens: which learns from whom, and a model that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.models import vit
from kdjax.objectives import distillation_token
from kdjax.objectives.base import counts, total
from tests.objectives.helpers import CLASSES, applied, labelled, outputs

SECOND = outputs(7).logits


@pytest.mark.parametrize("hard", [True, False])
def test_each_token_has_a_loss_of_its_own(hard):
  student, teacher, batch = outputs(0, distillation_logits=SECOND), outputs(1), labelled()
  batch["label"] = batch["label"].at[2].set(-1)
  objective = distillation_token(hard=hard, temperature=2.0, kd_weight=0.3, ce_weight=0.7)
  result, _ = applied(objective, student, teacher, batch)
  assert counts(result) == {"kd": 7, "ce": 6}  # the teacher speaks where labels are unknown
  first = 2 * student.logits - SECOND
  ce = losses.cross_entropy(first, batch["label"].at[2].set(0))[np.array([0, 1, 3, 4, 5, 6])].mean()
  if hard:
    picked = np.asarray(teacher.logits).argmax(-1)
    kd = -jax.nn.log_softmax(SECOND)[np.arange(7), picked[:7]].mean()
  else:
    kd = losses.hinton_kd(SECOND, teacher.logits, temperature=2.0)[:7].mean()
  np.testing.assert_allclose(total(result), 0.3 * kd + 0.7 * ce, rtol=1e-5)


def test_each_head_learns_from_its_own_term():
  model = vit(
    num_classes=CLASSES, image_shape=(4, 4, 1), width=8, depth=1, heads=2, pool="distilled"
  )
  variables = model.init(jax.random.key(0))
  batch = labelled() | {"image": jax.random.normal(jax.random.key(1), (8, 4, 4, 1))}
  taps = frozenset({"logits", "distillation_logits"})

  def gradient(**weights):
    objective = distillation_token(**weights)

    def loss(params):
      student, _ = model.apply(variables._replace(params=params), batch, taps=taps)
      given = objective.apply(None, student, outputs(1), batch, step=0, rng=None)
      return total(given)

    return jax.jit(jax.grad(loss))(variables.params)

  by_labels = gradient(kd_weight=0.0, ce_weight=1.0)
  by_teacher = gradient(kd_weight=1.0, ce_weight=0.0)
  for mine, other, name in (
    (by_labels, by_teacher, "head"),
    (by_teacher, by_labels, "distillation_head"),
  ):
    assert jnp.abs(mine[name]["kernel"]).max() > 1e-3
    np.testing.assert_allclose(other[name]["kernel"], 0.0, atol=1e-6)


def test_what_does_not_fit_is_told():
  with pytest.raises(KdjaxError, match="temperature = 0 must be positive"):
    distillation_token(temperature=0)
  with pytest.raises(KdjaxError, match="student did not hand over the tap 'distillation_logits'"):
    applied(distillation_token(), outputs(0), outputs(1), labelled())
