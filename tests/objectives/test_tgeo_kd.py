"""TGeo-KD: geometry features, the class table, and alpha's two ends."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.objectives import tgeo_kd
from kdjax.objectives.base import counts, total
from kdjax.objectives.tgeo_kd import geometry, trust
from kdjax.outputs import Outputs
from tests.objectives.helpers import CLASSES, applied, labelled, outputs


def with_alpha(variables, logit):
  """The variables with the network's output forced to one logit."""
  last = variables.params["layer2"]
  forced = {"kernel": jnp.zeros_like(last["kernel"]), "bias": jnp.full_like(last["bias"], logit)}
  return variables._replace(params=variables.params | {"layer2": forced})


def test_alpha_one_is_pure_distillation_and_zero_pure_labels():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  objective = tgeo_kd(temperature=3.0)
  start = objective.init(jax.random.key(0), student, teacher, batch)
  kd = losses.hinton_kd(student.logits, teacher.logits, temperature=3.0)[:-1].mean()
  ce = losses.cross_entropy(student.logits, batch["label"])[:-1].mean()
  for logit, wanted in ((40.0, kd), (-40.0, ce), (0.0, (kd + ce) / 2)):
    result, _ = applied(objective, student, teacher, batch, variables=with_alpha(start, logit))
    np.testing.assert_allclose(total(result, counts(result)), wanted, rtol=1e-6)


def test_class_table_rows_are_mean_probabilities():
  teacher, batch = outputs(1), labelled()
  objective = tgeo_kd()
  variables = objective.init(jax.random.key(0), outputs(0), teacher, batch)
  variables = objective.prepare(variables, teacher, batch)
  probs = np.asarray(jax.nn.softmax(teacher.logits))[:7]
  table = variables.state.sum / variables.state.count[:, None]
  np.testing.assert_allclose(table[0], (probs[0] + probs[5]) / 2, rtol=1e-5)
  np.testing.assert_allclose(table.sum(-1), 1, rtol=1e-5)


def test_a_perfect_teacher_gives_the_identity_table():
  batch = labelled()
  teacher = Outputs(logits=1e3 * jax.nn.one_hot(batch["label"], CLASSES))
  objective = tgeo_kd()
  variables = objective.init(jax.random.key(0), outputs(0), teacher, batch)
  state = objective.prepare(variables, teacher, batch).state
  np.testing.assert_allclose(state.sum / state.count[:, None], np.eye(CLASSES), atol=1e-6)


def test_features_are_vertices_and_squared_edges():
  student, teacher, labels = outputs(0).logits, outputs(1).logits, labelled()["label"]
  means = jax.nn.softmax(outputs(2, rows=CLASSES).logits)
  found = np.asarray(geometry(student, teacher, labels, means)).reshape(8, 9, CLASSES)
  s, t = np.asarray(jax.nn.softmax(student)), np.asarray(jax.nn.softmax(teacher))
  g, m = np.eye(CLASSES)[labels], np.asarray(means)[labels]
  wanted = [s, t, g, m, (m - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (m - g) ** 2]
  np.testing.assert_allclose(found, np.stack(wanted, axis=1), atol=1e-6)


def test_no_gradient_reaches_the_student_through_the_network():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  variables = tgeo_kd().init(jax.random.key(0), student, teacher, batch)
  means = jax.nn.softmax(outputs(2, rows=CLASSES).logits)

  def alpha(logits):
    return trust(variables.params, geometry(logits, teacher.logits, batch["label"], means)).sum()

  np.testing.assert_array_equal(jax.grad(alpha)(student.logits), 0)
