"""KD++: class means from one pass, the projector, and the three terms."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.objectives import nd_loss, norm_direction
from kdjax.objectives.base import counts
from tests.objectives.helpers import CLASSES, applied, labelled, outputs


def features(seed, width, rows=8):
  return jax.random.normal(jax.random.key(seed), (rows, width))


def prepared(objective, student, teacher, batch):
  variables = objective.init(jax.random.key(0), student, teacher, batch)
  return objective.prepare(variables, teacher, batch)


def test_class_means_are_over_valid_labelled_rows_of_all_batches():
  student, teacher = outputs(0, embedding=features(0, 4)), outputs(1, embedding=features(1, 4))
  batch = labelled()
  batch["label"] = batch["label"].at[0].set(-1)
  objective = norm_direction()
  variables = prepared(objective, student, teacher, batch)
  variables = objective.prepare(variables, teacher, batch)
  label, rows = np.asarray(batch["label"]), np.asarray(teacher.embedding)
  counted = np.asarray(batch["mask"]) & (label >= 0)
  for c in range(CLASSES):
    wanted = rows[counted & (label == c)]
    np.testing.assert_allclose(variables.state.count[c], 2 * len(wanted))
    np.testing.assert_allclose(variables.state.sum[c], 2 * wanted.sum(0), rtol=1e-5, atol=1e-6)


def test_equal_widths_need_no_projector_and_give_the_papers_loss():
  student, teacher = outputs(0, embedding=features(0, 4)), outputs(1, embedding=features(1, 4))
  batch = labelled()
  variables = prepared(norm_direction(), student, teacher, batch)
  assert variables.params == ()
  result, _ = applied(norm_direction(), student, teacher, batch, variables=variables)
  means = variables.state.sum / np.maximum(variables.state.count, 1)[:, None]
  s, t = np.asarray(student.embedding), np.asarray(teacher.embedding)
  for i in range(7):
    direction = means[batch["label"][i]]
    direction = direction / np.linalg.norm(direction)
    wanted = 1 - s[i] @ direction / max(np.linalg.norm(s[i]), np.linalg.norm(t[i]))
    np.testing.assert_allclose(result.loss[""].values[i], wanted, rtol=1e-5)
  assert counts(result)[""] == 7


def test_a_projector_bridges_widths_and_gets_a_gradient():
  student, teacher = outputs(0, embedding=features(0, 3)), outputs(1, embedding=features(1, 4))
  batch = labelled()
  objective = norm_direction(dropout=0.0)
  variables = prepared(objective, student, teacher, batch)
  assert variables.params["layer0"]["kernel"].shape == (3, 4)

  def loss(params):
    result, _ = applied(
      objective, student, teacher, batch, variables=variables._replace(params=params)
    )
    return result.loss[""].values.sum()

  grad = jax.grad(loss)(variables.params)
  assert float(jnp.abs(grad["layer0"]["kernel"]).max()) > 1e-4


def test_kd_warms_up_from_zero_and_its_peers_do_not():
  student, teacher = outputs(0, embedding=features(0, 4)), outputs(1, embedding=features(1, 4))
  objective = nd_loss(kd_weight=3.0, nd_weight=2.0, warmup_steps=20)
  weights = []
  for step in (0, 5, 40):
    result, _ = applied(objective, student, teacher, labelled(), step=step)
    weights.append([float(result.loss[name].weight) for name in ("ce", "kd", "nd")])
  np.testing.assert_allclose(weights, [[1, 0, 2], [1, 0.75, 2], [1, 3, 2]], rtol=1e-6)
  np.testing.assert_allclose(
    result.loss["kd"].values[:-1],
    losses.hinton_kd(student.logits, teacher.logits, temperature=4.0)[:-1],
    rtol=1e-6,
  )
