"""CRD: official numbers, negatives of other classes, and banks that follow the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import contrastive_representation
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.objectives.contrastive_representation import (
  Banks,
  Seen,
  contrast,
  draw_negatives,
  embed,
)
from kdjax.outputs import Outputs
from tests.losses.checks import CLOSE, reference
from tests.objectives.helpers import applied, labelled, outputs

STORED = reference("vision_distillers")
SMALL = {"examples": 20, "width": 8, "negatives": 6}


def test_two_steps_in_a_row_are_the_official_ones():
  layers = [
    {"layer0": {k: jnp.asarray(STORED[f"crd_{side}_{k}"]) for k in ("kernel", "bias")}}
    for side in "st"
  ]
  banks = Banks(
    jnp.asarray(STORED["crd_memory_v1"]),
    jnp.asarray(STORED["crd_memory_v2"]),
    jnp.zeros(2),
    jnp.zeros(20, jnp.int32),
  )
  update = contrastive_representation(**SMALL).update
  for step in range(2):
    student, teacher, candidates = (
      jnp.asarray(STORED[f"crd{step}_{k}"]) for k in ("student", "teacher", "candidates")
    )
    where = jnp.ones(4, bool)

    def loss(
      student, teacher_layer, banks=banks, teacher=teacher, candidates=candidates, where=where
    ):
      s, t = embed(layers[0], student), embed(teacher_layer, teacher)
      values, scale = contrast(banks, s, t, candidates, where, 0.07)
      return values.mean(), (s, t, scale)

    value, (s, t, scale) = loss(student, layers[1])
    by_student, by_layer = jax.grad(lambda *x: loss(*x)[0], argnums=(0, 1))(student, layers[1])
    np.testing.assert_allclose(value, STORED[f"crd{step}"], rtol=1e-5)
    np.testing.assert_allclose(by_student, STORED[f"crd{step}_grad"], rtol=1e-4, atol=1e-4)
    bias = by_layer["layer0"]["bias"]
    np.testing.assert_allclose(bias, STORED[f"crd{step}_t_bias_grad"], rtol=1e-4, atol=1e-4)
    seen = Seen(candidates[:, 0], s, t, scale)
    state = {"feature": banks, "ce": ()}
    stats = {"feature": jax.tree.map(lambda x: x[None], seen), "ce": ()}
    banks = update(state, stats, step=step)["feature"]
    np.testing.assert_allclose(banks.scale, STORED[f"crd{step}_z"], rtol=1e-5)
    np.testing.assert_allclose(banks.student, STORED[f"crd{step}_memory_v1"], **CLOSE)
    np.testing.assert_allclose(banks.teacher, STORED[f"crd{step}_memory_v2"], **CLOSE)


def test_negatives_are_uniform_over_the_examples_of_other_classes():
  # Index 3 and 7 hold no example.
  label = jnp.array([0, 1, 2, -2, 1, 0, 0, -2, 2, 5])
  index = jnp.array([0, 4, 9])
  drawn = np.asarray(draw_negatives(jax.random.key(0), label, index, 9000))
  for row, others in zip(drawn, ([1, 2, 4, 8, 9], [0, 2, 5, 6, 8, 9], [0, 1, 2, 4, 5, 6, 8]),
                         strict=True):  # fmt: skip
    found, number = np.unique(row, return_counts=True)
    assert found.tolist() == others
    np.testing.assert_allclose(number / 9000, 1 / len(others), atol=0.02)


def sides():
  embedding = [jax.random.normal(jax.random.key(i), (8, 4 + i)) for i in range(2)]
  return [outputs(i, embedding=x) for i, x in enumerate(embedding)]


def a_batch():
  return labelled() | {"index": jnp.array([3, 1, 15, 0, 7, 9, 2, 19])}


def prepared(objective, batch):
  student, teacher = sides()
  variables = objective.init(jax.random.key(0), student, teacher, batch)
  return objective.prepare(variables, teacher, batch)


def test_classes_are_the_labels_or_what_the_teacher_says():
  batch = a_batch()
  batch["label"] = batch["label"].at[1].set(-1)
  variables = prepared(contrastive_representation(**SMALL), batch)
  label = np.full(20, -2)
  label[np.asarray(batch["index"])] = batch["label"]
  label[1] = np.argmax(sides()[1].logits[1])
  label[19] = -2  # padding
  np.testing.assert_array_equal(variables.state["feature"].label, label)


def test_only_rows_that_count_move_the_banks_and_micro_batches_change_nothing():
  objective, batch = contrastive_representation(**SMALL), a_batch()
  variables = prepared(objective, batch)
  result, _ = applied(objective, *sides(), batch, variables=variables)
  assert result.loss["feature"].values.shape == (8,)
  stats = result.stats["feature"]
  whole = {"feature": jax.tree.map(lambda x: x[None], stats), "ce": ()}
  banks = objective.update(variables.state, whole, step=0)["feature"]
  before = variables.state["feature"]
  moved = np.flatnonzero(np.any(banks.student != before.student, axis=1))
  np.testing.assert_array_equal(moved, np.sort(batch["index"][:7]))
  np.testing.assert_allclose(jnp.linalg.norm(banks.student[moved], axis=1), 1.0, rtol=1e-5)
  micro = Seen(
    *(x.reshape((2, 4, *x.shape[1:])) for x in stats[:3]), jnp.stack([stats.scale, stats.scale])
  )
  again = objective.update(variables.state, {"feature": micro, "ce": ()}, step=0)["feature"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, banks)


def test_an_index_that_comes_twice_moves_to_the_mean():
  objective = contrastive_representation(**SMALL)
  banks = prepared(objective, a_batch()).state["feature"]
  x = jax.random.normal(jax.random.key(5), (1, 2, 8))
  seen = Seen(jnp.array([[4, 4]]), x, x, jnp.ones((1, 2)))
  moved = objective.update({"feature": banks, "ce": ()}, {"feature": seen, "ce": ()}, step=0)
  wanted = 0.5 * banks.student[4] + 0.5 * x[0].mean(0)
  np.testing.assert_allclose(
    moved["feature"].student[4], wanted / jnp.linalg.norm(wanted), rtol=1e-5
  )


def test_a_batch_without_valid_rows_costs_nothing():
  objective, batch = contrastive_representation(**SMALL), a_batch()
  variables = prepared(objective, batch)
  empty = batch | {"mask": jnp.zeros(8, bool), "index": jnp.full(8, -1)}
  student, teacher = sides()

  def loss(embedding):
    own = Outputs(logits=student.logits, embedding=embedding)
    out, _ = applied(objective, own, teacher, empty, variables=variables)
    return total(out)

  value, gradient = jax.value_and_grad(loss)(student.embedding)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
  out, _ = applied(objective, student, teacher, empty, variables=variables)
  assert isinstance(variables, ObjectiveVars) and np.isfinite(out.stats["feature"].scale).all()


@pytest.mark.parametrize("wrong", [{"examples": 0}, {"temperature": 0.0}, {"momentum": 1.0}])
def test_values_out_of_range_are_named(wrong):
  name, value = next(iter(wrong.items()))
  with pytest.raises(KdjaxError, match=f"{name} = {value}"):
    contrastive_representation(**(SMALL | wrong))
