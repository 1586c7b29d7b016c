"""Logits as z-scores before an objective: official values, invariance, configs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import logit_standardization
from kdjax.errors import KdjaxError
from kdjax.objectives import cross_entropy, hinton_kd, standardized
from kdjax.objectives.base import total
from kdjax.train.build import build_objective
from kdjax.train.config import check_config, merge
from tests.objectives.helpers import applied, labelled, outputs

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "logit_standardization.npz"
KD = {"name": "hinton_kd", "temperature": 2.0, "kd_weight": 1.0, "ce_weight": 0.0}


def test_the_loss_is_the_official_one():
  told = dict(np.load(REFERENCE, allow_pickle=False))
  student, teacher = (outputs(0, logits=jnp.asarray(told[name])) for name in ("student", "teacher"))
  objective = build_objective({"name": "standardized", "objective": KD})
  out, _ = applied(objective, student, teacher, {"label": jnp.full(6, -1)})
  np.testing.assert_allclose(total(out), told["kd_t2"], rtol=1e-5)


def test_ranges_and_shifts_of_either_side_do_not_count():
  objective, batch = standardized(hinton_kd(ce_weight=0.0)), labelled()
  student, teacher = outputs(0), outputs(1)

  @jax.jit
  def loss(own, told):
    sides = outputs(0, logits=own), outputs(1, logits=told)
    variables = objective.init(None, *sides, batch)
    return total(objective.apply(variables, *sides, batch, step=0, rng=None))

  plain = loss(student.logits, teacher.logits)
  moved = loss(3 * student.logits + 1, 0.5 * teacher.logits - 2)
  np.testing.assert_allclose(moved, plain, rtol=1e-4)
  np.testing.assert_allclose(loss(2 * teacher.logits, teacher.logits), 0, atol=1e-5)
  assert not jax.grad(loss, 1)(student.logits, teacher.logits).any()


def test_labels_beside_it_see_the_logits_as_they_are():
  config = logit_standardization.get_config().to_dict()
  student, teacher, batch = outputs(0), outputs(1), labelled()
  out, _ = applied(build_objective(config["objective"]), student, teacher, batch)
  plain, _ = applied(cross_entropy(), student, teacher, batch)
  np.testing.assert_allclose(out.loss["ce"].values, plain.loss[""].values)
  assert out.loss["ce"].weight == pytest.approx(0.1)
  assert [name for name in out.loss if name != "ce"] and out.loss["kd/kd"].weight == 9


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_configs_are_whole(variant):
  config = logit_standardization.get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)
    build_objective(own["objective"])


@pytest.mark.parametrize(
  "spec, message",
  [
    ({"name": "standardized"}, "config.objective: standardized takes exactly the field objective"),
    ({"name": "standardized", "objective": "kd"}, "takes exactly the field objective, a mapping"),
    (
      {"name": "standardized", "objective": KD | {"temprature": 2.0}},
      "config.objective.objective.temprature is not an argument",
    ),
    (
      {"name": "standardized", "objective": {"name": "cross_entropy"}},
      "reads nothing of the teacher, and no logits",
    ),
    (
      {"name": "standardized", "objective": KD | {"chunk_size": 4}},
      r"reads \['head', 'hidden'\] of the student, and no logits",
    ),
  ],
)
def test_what_does_not_fit_is_told(spec, message):
  with pytest.raises(KdjaxError, match=message):
    build_objective(spec)
