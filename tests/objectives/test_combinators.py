"""Combinators: names, weights, layers, and chunks that change nothing but memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import combine, cross_entropy, hinton_kd, on_layers, scheduled
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, counts, metrics, total
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied, labelled, outputs


def scalar(result):
  return total(result, counts(result))


def test_hinton_kd_is_the_weighted_sum_of_its_terms_over_valid_rows():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  result, _ = applied(
    hinton_kd(temperature=3.0, kd_weight=0.7, ce_weight=0.2), student, teacher, batch
  )
  kd = losses.hinton_kd(student.logits, teacher.logits, temperature=3.0)[:-1].mean()
  ce = losses.cross_entropy(student.logits, batch["label"])[:-1].mean()
  np.testing.assert_allclose(scalar(result), 0.7 * kd + 0.2 * ce, rtol=1e-6)
  named = metrics(result)
  assert set(named) == {"loss/kd", "loss/ce"}
  np.testing.assert_allclose(named["loss/ce"][0] / named["loss/ce"][1], ce, rtol=1e-6)
  assert named["loss/kd"][1] == 7


def test_unlabelled_rows_count_for_the_teacher_only():
  student, teacher, batch = outputs(0), outputs(1), labelled()
  batch["label"] = jnp.where(jnp.arange(8) < 3, batch["label"], -1)
  result, _ = applied(hinton_kd(), student, teacher, batch)
  assert counts(result) == {"kd": 7, "ce": 3}
  ce = losses.cross_entropy(student.logits[:3], batch["label"][:3]).mean()
  num, den = metrics(result)["loss/ce"]
  np.testing.assert_allclose(num / den, ce, rtol=1e-6)


def test_a_batch_without_valid_rows_gives_zero_and_finite_gradients():
  batch = {"label": jnp.full(8, -1), "mask": jnp.zeros(8, bool)}
  teacher = outputs(1)

  def loss(logits):
    return scalar(applied(hinton_kd(), Outputs(logits=logits), teacher, batch)[0])

  value, grad = jax.value_and_grad(loss)(outputs(0).logits)
  assert value == 0
  np.testing.assert_array_equal(grad, 0)


def test_combined_names_nest_and_weights_multiply():
  inner = combine({"a": (2.0, cross_entropy()), "b": (3.0, cross_entropy())})
  result, variables = applied(combine({"x": (5.0, inner)}), outputs(0), Outputs(), labelled())
  assert {name: term.weight for name, term in result.loss.items()} == {"x/a": 10.0, "x/b": 15.0}
  assert set(variables.state["x"]) == {"a", "b"}


def test_scheduled_multiplies_weights_by_the_schedule_at_the_step():
  objective = scheduled(cross_entropy(), optax.linear_schedule(0.0, 1.0, 10))
  student, batch = outputs(0), labelled()
  full = scalar(applied(cross_entropy(), student, Outputs(), batch)[0])
  part = scalar(applied(objective, student, Outputs(), batch, step=3)[0])
  np.testing.assert_allclose(part, 0.3 * full, rtol=1e-6)


def hint() -> Objective:
  """Mean squared difference of one layer, for the tests of pairings."""

  def apply(variables, student, teacher, batch, *, step, rng):
    gap = jnp.square(student.hidden_states - teacher.hidden_states).mean(-1)
    return ObjectiveResult({"": Term(gap, jnp.ones(gap.shape, bool))})

  fields = frozenset({"hidden_states"})
  return Objective(apply=apply, taps=Taps(fields, fields))


def test_on_layers_averages_over_pairs_and_reads_only_those_layers():
  student = Outputs(hidden_states=jnp.arange(12.0).reshape(3, 2, 2))
  teacher = Outputs(hidden_states=jnp.zeros((4, 2, 2)).at[3].set(1.0))
  result, _ = applied(on_layers(hint(), [(0, 1), (-1, -1)]), student, teacher, {})
  assert set(result.loss) == {"s0_t1", "s-1_t-1"}
  first = np.square(np.arange(4.0)).mean()
  last = np.square(np.arange(8.0, 12.0) - 1).mean()
  np.testing.assert_allclose(scalar(result), (first + last) / 2, rtol=1e-6)


def test_a_layer_that_does_not_exist_is_an_error_before_anything_runs():
  student, teacher = (
    outputs(0, hidden_states=jnp.zeros((2, 8, 3))),
    outputs(1, hidden_states=jnp.zeros((4, 8, 3))),
  )
  shapes = jax.eval_shape(lambda s, t: (s, t), student, teacher)
  with pytest.raises(KdjaxError, match="student layer 2 does not exist; the student has 2 layers"):
    on_layers(hint(), [(2, 0)]).init(jax.random.key(0), *shapes, {})
  with pytest.raises(KdjaxError, match="pairs is empty"):
    on_layers(hint(), [])


def test_a_missing_stage_lists_the_stages():
  with_maps = dataclasses.replace(outputs(0), features={"stage1": jnp.zeros((8, 2, 2, 3))})
  with pytest.raises(KdjaxError, match=r"'stage9' does not exist; its stages are \['stage1'\]"):
    applied(on_layers(hint(), [("stage9", "stage1")]), with_maps, with_maps, {})


def stage_gap() -> Objective:
  def apply(variables, student, teacher, batch, *, step, rng):
    (own,), (told,) = student.preactivations.values(), teacher.preactivations.values()
    gap = jnp.square(own - told).mean((1, 2, 3))
    return ObjectiveResult({"": Term(gap, jnp.ones(gap.shape, bool))})

  fields = frozenset({"preactivations"})
  return Objective(apply=apply, taps=Taps(fields, fields))


def test_stages_are_named_or_counted_and_weighed():
  def side(*values):
    maps = {f"stage{i + 1}": jnp.full((2, 1, 1, 1), v) for i, v in enumerate(values)}
    return Outputs(preactivations=maps)

  objective = on_layers(stage_gap(), [("stage1", "stage1"), (-1, 1)], weights=[0.5, 3.0])
  result, _ = applied(objective, side(1.0, 2.0, 5.0), side(4.0, 7.0), {})
  np.testing.assert_allclose(scalar(result), 0.5 * 9 + 3 * 4, rtol=1e-6)
  with pytest.raises(
    KdjaxError, match=r"teacher layer 2 does not exist; its stages are \['stage1'"
  ):
    applied(on_layers(stage_gap(), [(0, 2)]), side(1.0), side(4.0, 7.0), {})


@pytest.mark.parametrize(("pairs", "weights"), [([(0, 0)], [1.0, 2.0]), ([(0, 0), (0, 0)], None)])
def test_pairs_and_weights_that_do_not_fit_are_refused(pairs, weights):
  with pytest.raises(KdjaxError, match="one weight for each pair and each pair once"):
    on_layers(stage_gap(), pairs, weights=weights)
